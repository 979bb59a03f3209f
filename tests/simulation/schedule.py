"""One schedule: a search under seeded faults, run again after every death, and then judged."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.errors import RunFolderError, StudyError
from evomerge.journal import RESULT, read
from evomerge.optimizers.base import Optimizer, Problem
from evomerge.recipe import LayerGroup, ModelRef, Recipe
from evomerge.run import Run
from evomerge.store import JOURNAL, TrialStore, open_run
from evomerge.study import Study
from evomerge.trial import Objective, Scores, Trial, TrialState
from tests.simulation.disk import HOWS, Disk, DriverDeath, under
from tests.simulation.virtual import Faults, VirtualExecutor

OBJECTIVES = (
    Objective("a", "task_a", "acc"),
    Objective("b", "task_b", "bits_per_byte", direction="minimize"),
)
MODELS = (ModelRef("one", "/models/one", "1" * 64), ModelRef("two", "/models/two", "2" * 64))
BASE = ModelRef("base", "/models/base", "0" * 64)
GROUPS = (LayerGroup("all", ("w",)),)
DIM = len(MODELS)
AXES = [(f"weight[all][{m.name}]", 0.0, 1.0) for m in MODELS]
NOISE = np.linspace(-0.1, 0.1, 8)
MANY = 400
"""More sittings than any schedule needs."""


class Square:
    """[0, 1]^2 as the weights of two experts."""

    def snap(self, x: np.ndarray) -> np.ndarray:
        return np.array(x, dtype=np.float64)

    def decode(self, x: np.ndarray) -> Recipe:
        return Recipe("task_arithmetic", MODELS, BASE, GROUPS, {"weight": x.reshape(1, DIM)})


def scores_of(trial: Trial) -> Scores:
    """A function of the recipe and the split; every document has a score."""
    w = trial.recipe.coefficients["weight"][0]
    shift = {"search": 0.0, "select": 0.01, "test": 0.02}[trial.split]
    values = {
        "a": 1 - float(((w - 0.7) ** 2).mean()) - shift,
        "b": -0.5 - float(((w - 0.3) ** 2).mean()) - shift,
    }
    each = {k: (v + NOISE * (1 + w[0])).astype(np.float32) for k, v in values.items()}
    return Scores(values, dict.fromkeys(values, 0.05), each, {"merge": 1.0, "score": 2.0})


def without_documents(trial: Trial) -> Scores:
    """The same, where the metrics are corpus metrics."""
    scores = scores_of(trial)
    return dataclasses.replace(scores, per_example=dict.fromkeys(scores.values))


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a seed stands for.

    Attributes:
        seed: Of everything.
        workers: How many.
        n_trials: Budget.
        finals: Whether there are documents for finals.
        documents: Whether there are scores per document, which are a file per trial.
        faults: Of the executor.
        deaths: (operation, how) of every sitting but the last.
    """

    seed: int
    workers: int
    n_trials: int
    finals: bool
    documents: bool
    faults: Faults
    deaths: tuple[tuple[int, str], ...]

    @classmethod
    def draw(cls, seed: int, n_trials: tuple[int, int], *, documents: bool = False) -> Plan:
        """The schedule of a seed, with a budget in a range."""
        rng = random.Random(seed)
        faults = Faults(
            seed,
            straggles=rng.choice((0.0, 0.2)),
            loses=rng.choice((0.0, 0.0, 0.3)),
            repeats=rng.choice((0.0, 0.3)),
            poisons=rng.choice((0.0, 0.0, 0.15)),
            leaves=rng.choice((0.0, 0.2)),
        )
        deaths = [
            (min(int(rng.expovariate(1 / 10)), 50), rng.choice(HOWS))
            for _ in range(rng.randint(0, 3))
        ]
        workers, budget = rng.choice((1, 1, 2, 3, 5)), rng.randint(*n_trials)
        finals, documents = rng.random() < 0.25, documents or rng.random() < 0.25
        return cls(seed, workers, budget, finals, documents, faults, tuple(deaths))

    def evaluate(self, trial: Trial) -> Scores:
        """The simulated evaluation."""
        return scores_of(trial) if self.documents else without_documents(trial)

    def references(self) -> list[tuple[str, Recipe, np.ndarray | None]]:
        """The base (outside the space, as often in real ones), and an expert."""
        space = Square()
        found = [("base", space.decode(np.zeros(DIM)), None)]
        if self.seed % 2:
            x = np.array([1.0, 0.0])
            found.append(("expert one", space.decode(x), x))
        return found


class Witness:
    """An optimizer and an observer that writes down what it is asked and told.

    Attributes:
        told: (number, split) in told order, of this sitting.
        asks: (told search trials, first, n, pending, points) of every ask.
    """

    def __init__(self, optimizer: Optimizer, disk: Disk) -> None:
        self._optimizer, self._disk = optimizer, disk
        self.pareto = optimizer.pareto
        self.told_keys: list[tuple[int, str]] = []
        self.asks: list[tuple[int, int, int, tuple[Trial, ...], list[np.ndarray]]] = []
        self._n = 0

    def ask(self, n: int, first: int, pending: Sequence[Trial] = ()) -> list[np.ndarray]:
        points = self._optimizer.ask(n, first, pending)
        assert len(points) <= n
        self.asks.append((self._n, first, n, tuple(pending), [x.copy() for x in points]))
        return points

    def tell(self, trials: Sequence[Trial]) -> None:
        assert self._disk.results > len(self.told_keys), "told before it was durable"
        self._n += len(trials)
        self._optimizer.tell(trials)

    def told(self, trial: Trial) -> None:
        assert (trial.number, trial.split) not in self.told_keys, "told twice"
        self.told_keys.append((trial.number, trial.split))
        assert self._disk.results >= len(self.told_keys), "told before it was durable"

    def asked(self, n: int, seconds: float) -> None: ...
    def phase(self, phase: str, total: int) -> None: ...
    def started(self, trial: Trial) -> None: ...


Build = Callable[[Problem], Optimizer]


def problem(seed: int) -> Problem:
    return Problem(DIM, seed, OBJECTIVES, np.full(DIM, 0.5))


def run(plan: Plan, build: Build, folder: Path, *, syncs: bool = False) -> list[Witness]:
    """Runs sitting after sitting until the study is finished; one witness of each."""
    disk = Disk(random.Random(plan.seed), syncs)
    witnesses = []
    with under(disk):
        for sitting in range(MANY):
            dies_at, how = plan.deaths[sitting] if sitting < len(plan.deaths) else (None, "")
            disk.arm(folder, dies_at, how)
            witness = Witness(build(problem(plan.seed)), disk)
            witnesses.append(witness)
            if _sit(plan, witness, folder, alive=dies_at is None):
                return witnesses
    raise AssertionError("no end")


def _sit(plan: Plan, witness: Witness, folder: Path, *, alive: bool) -> bool:
    """One sitting; whether the study is finished."""
    meta: dict[str, Any] = {"fingerprint": {"seed": plan.seed}, "pareto": witness.pareto}
    if not plan.finals:
        meta["documents"] = {split: {"a": 0, "b": 0} for split in ("select", "test")}
    store = None
    try:
        store = TrialStore(folder, OBJECTIVES, meta, AXES)
        study = Study(
            space=Square(),
            optimizer=witness,
            executor=VirtualExecutor(
                plan.evaluate,
                plan.workers,
                functools.partial(_seconds, plan.seed),
                plan.faults,
            ),
            store=store,
            references=plan.references(),
            n_trials=plan.n_trials,
            view=lambda trials: Run(folder, OBJECTIVES, tuple(trials), (), meta),
            n_finalists=2,
            observer=witness,
        )
        return study.run()
    except (DriverDeath, RunFolderError):
        assert not alive, "died without a reason"
        return False
    except StudyError as e:
        return "all failed" in str(e) and plan.faults.poisons > 0  # hopeless, and said so
    finally:
        if store is not None:
            store.close()


def _seconds(seed: int, trial: Trial) -> float:
    """Heavy-tailed: log-normal, median 10 s."""
    rng = np.random.default_rng((seed, trial.number, trial.attempt))
    return float(10 * np.exp(rng.normal()))


def judge(plan: Plan, build: Build, folder: Path, witnesses: Sequence[Witness]) -> str:
    """Holds a schedule's end against the laws; ``"finished"`` or ``"hopeless"``.

    Raises:
        AssertionError: A law is broken.
    """
    found = open_run(folder)
    trials = found.trials
    keys = [(t.number, t.split) for t in trials]
    assert len(set(keys)) == len(keys), "a trial is there twice"
    for witness in witnesses:
        assert keys[: len(witness.told_keys)] == witness.told_keys, "told in another order"
    for t in trials:
        _judge_trial(plan, t)
    results = [e for e in read(folder / JOURNAL).entries if RESULT in e.attrs]
    assert all(e.closed for e in results), "Optuna thinks that a finished trial runs"
    _judge_fold(build(problem(plan.seed)), trials, found.running, witnesses)
    if not _is_hopeless(trials):
        assert not found.running
        searched = sorted(t.number for t in trials if t.split == "search")
        assert searched == list(range(len(plan.references()) + plan.n_trials)), "lost trials"
        assert keys == witnesses[-1].told_keys
        return "finished"
    return "hopeless"


def _is_hopeless(trials: Sequence[Trial]) -> bool:
    return all(t.state is TrialState.FAILED for t in trials if t.kind == "search")


def _judge_trial(plan: Plan, t: Trial) -> None:
    """Its scores are those of its recipe, whatever happened to its workers."""
    if plan.faults.poisoned(t):
        assert t.state is TrialState.FAILED
        assert "given up" in (t.error or "")
        return
    assert t.state is TrialState.COMPLETE, t.error
    want = plan.evaluate(t)
    assert t.scores is not None
    assert dict(t.scores.values) == dict(want.values)
    for name, each in want.per_example.items():
        found = t.scores.per_example[name]
        assert (found is None) == (each is None)
        assert each is None or np.array_equal(found, each)


def _judge_fold(
    fresh: Optimizer,
    trials: Sequence[Trial],
    running: Sequence[Trial],
    witnesses: Sequence[Witness],
) -> None:
    """Every search trial is what an undisturbed optimizer proposes at that place of the fold.

    An ask of a sitting whose RUNNING records a power cut took never happened; all others are asked
    again of a fresh optimizer that is told the stored trials in their order.
    """
    told = [t for t in trials if t.split == "search"]
    by_number = {t.number: t for t in (*running, *told)}  # a hopeless study leaves some running

    def stands(number: int, x: np.ndarray | None) -> bool:
        t = by_number.get(number)
        if t is None or (t.x is None) != (x is None):
            return False
        return x is None or np.array_equal(t.x, x)

    due: dict[int, list] = {}
    for witness in witnesses:
        for n_told, first, n, pending, points in witness.asks:
            if all(stands(first + i, x) for i, x in enumerate(points)) and all(
                stands(t.number, t.x) for t in pending
            ):
                due.setdefault(n_told, []).append((first, n, pending, points))
    proposed: set[int] = set()
    for i in range(len(told) + 1):
        for first, n, pending, points in due.get(i, ()):
            again = fresh.ask(n, first, pending)
            assert len(again) == len(points), "the fold asks for another number of points"
            assert all(map(np.array_equal, again, points)), "the fold asks for other points"
            proposed |= {first + k for k in range(len(points))}
        if i < len(told):
            fresh.tell([told[i]])
    assert proposed >= {t.number for t in told if t.kind == "search"}, (
        "a trial that none asked for"
    )
