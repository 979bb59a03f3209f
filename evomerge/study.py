"""The loop: ask, run, store, tell; and the finals.

One rule serves synchronous and asynchronous search: the optimizer is asked for as many points as
there are free workers, and may return fewer. Nothing is lost: a trial is stored as RUNNING before
it is submitted and as finished before it is told, so a killed study started again tells a fresh
optimizer what the store holds, submits again what was RUNNING, and goes on.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import numpy as np

from evomerge.budget import Budget
from evomerge.choose import finalists, ranked
from evomerge.errors import ConfigError, StudyError
from evomerge.executors.base import Executor, Job
from evomerge.experts import ExpertPool
from evomerge.methods import EVERY_METHOD
from evomerge.optimizers.base import Optimizer
from evomerge.racing import Bar, Racing
from evomerge.recipe import Recipe, Vector
from evomerge.run import Run
from evomerge.scale import BASE, EXPERT
from evomerge.space import SearchSpace
from evomerge.store import TrialStore
from evomerge.trial import WAIT, Split, Trial, TrialState

Phase = Literal["references", "search", "finals", "done"]
UNIFORM = "uniform average"
TASK_ARITHMETIC = "task arithmetic 0.4"


class Observer(Protocol):
    """Sees what happens, in the driver's thread."""

    def asked(self, n: int, seconds: float) -> None:
        """The optimizer proposed ``n`` points, in so many seconds."""
        ...

    def phase(self, phase: Phase, total: int) -> None:
        """A phase begins with ``total`` trials to finish in it (0: not known)."""
        ...

    def started(self, trial: Trial) -> None:
        """A trial was submitted."""
        ...

    def told(self, trial: Trial) -> None:
        """A trial is finished and stored."""
        ...


class Space(Protocol):
    """What the loop needs of a search space."""

    def snap(self, x: Vector) -> Vector: ...  # noqa: D102
    def decode(self, x: Vector) -> Recipe: ...  # noqa: D102


class Study:
    """One search, from the reference points to the finals.

    Args:
        space: Decodes what the optimizer proposes.
        optimizer: Proposes points.
        executor: Runs trials.
        store: Keeps them.
        references: Recipes scored before the search, with their label and, where the space can
            express them, their point.
        n_trials: Budget: search trials of the whole run, those of earlier sittings included.
        n_finalists: How many candidates are scored again on the select split.
        budget: What else ends the search; None: nothing.
        racing: How search trials are raced; None: every one is asked all documents. References
            and finals always are.
        view: Builds a :class:`~evomerge.run.Run` of trials, for choosing the finalists.
        observer: Sees what happens.
    """

    def __init__(
        self,
        *,
        space: Space,
        optimizer: Optimizer,
        executor: Executor,
        store: TrialStore,
        references: Sequence[tuple[str, Recipe, Vector | None]],
        n_trials: int,
        view: Callable[[Sequence[Trial]], Run],
        n_finalists: int = 5,
        budget: Budget | None = None,
        racing: Racing | None = None,
        observer: Observer | None = None,
    ) -> None:
        if n_trials < 1:
            raise ConfigError(f"n_trials: expected at least 1, got {n_trials}.")
        self._space, self._optimizer = space, optimizer
        self._executor, self._store = executor, store
        self._references = list(references)
        self._n_trials, self._n_finalists = n_trials, n_finalists
        self._view, self._observer, self._racing = view, observer, racing
        self._budget = budget
        self._told: list[Trial] = []
        self._due: deque[Trial] = deque()
        self._pending: dict[tuple[int, Split], Trial] = {}
        self._since: dict[tuple[int, Split], float] = {}  # when what is pending was submitted
        self._by_recipe: dict[str, Trial] = {}
        self._n_search = 0
        self._stopping = False
        self._n_replayed = 0
        self._hopeful = False  # whether any search trial was scored

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Finished trials in told order."""
        return tuple(self._told)

    def stop(self) -> None:
        """Starts nothing new; what is in flight is finished, stored and told."""
        self._stopping = True

    def run(self, *, dry: bool = False) -> bool:
        """Runs the study to its end, or until :meth:`stop`.

        Args:
            dry: Score two reference points, enough to say what a search will take, and stop.

        Returns:
            Whether the study is finished.

        Raises:
            StudyError: Every first trial failed; the message holds the first traceback.
        """
        self._executor.warm_up()
        self._replay()
        known = {(t.number, t.split) for t in self._told} | set(self._pending)
        missing = [i for i in range(len(self._references)) if (i, "search") not in known]
        if dry:
            missing, self._n_trials = [i for i in missing if i < 2], 0
        self._announce("references", len(missing))
        for number in missing:
            label, recipe, x = self._references[number]
            self._due.append(Trial(number, "reference", x, recipe, label=label))
        if not dry:
            self._announce("search", self._n_trials)
        self._work()
        finished = not dry and not self._stopping and self._finals()
        self._announce("done", 0)
        return finished

    def _replay(self) -> None:
        """Takes up what the store holds: tells it, and submits again what was RUNNING."""
        for trial in self._store.load():
            self._n_search += trial.kind == "search" and trial.split == "search"
            if trial.finished:
                self._take(trial, fresh=False)
            else:
                again = dataclasses.replace(trial, attempt=trial.attempt + 1)
                self._store.start(again)
                self._submit(again)
        self._n_replayed = len(self._told)

    def _work(self) -> None:
        """Starts and collects until nothing is due, nothing more is asked for, nothing runs."""
        while True:
            started = not self._stopping and self._start_something()
            if not started and not self._pending:
                return
            if self._pending:
                self._collect()

    def _start_something(self) -> bool:
        """Starts what is due, and on the workers that are left what is asked for."""
        due = self._start_due()
        return self._start_asked() or due

    def _start_due(self) -> bool:
        """Starts reference points and finals, which come before anything that is asked for."""
        started = False
        while self._due and len(self._pending) < self._executor.capacity:
            self._start(self._due.popleft())
            started = True
        return started

    def _start_asked(self) -> bool:
        """Asks for as many points as there are free workers and starts them."""
        free = self._executor.capacity - len(self._pending)
        left = self._n_trials - self._n_search
        if self._budget is not None and min(free, left) > 0:
            allowed = self._budget.left(sum(t.split == "search" for t in self._pending.values()))
            left = left if allowed is None else min(left, allowed)
        if min(free, left) < 1:
            return False
        first = len(self._references) + self._n_search
        pending = sorted(self._pending.values(), key=lambda t: t.number)
        # A race is run in the units that the reference points define.
        awaits_reference = any(t.kind == "reference" for t in pending)
        start = time.perf_counter()
        points = self._optimizer.ask(min(free, left), first, pending)
        if points and self._observer:
            self._observer.asked(len(points), time.perf_counter() - start)
        for i, point in enumerate(points):
            x = self._space.snap(np.asarray(point, dtype=np.float64))
            self._n_search += 1
            trial = Trial(first + i, "search", x, self._space.decode(x))
            if self._racing is not None and not awaits_reference:
                trial = dataclasses.replace(trial, raced_after=len(self._told))
            self._start(trial)
        return bool(points)

    def _start(self, trial: Trial) -> None:
        """Submits a trial; one whose recipe was scored already gets copied scores at once."""
        twin = self._by_recipe.get(trial.recipe.id) if trial.split == "search" else None
        if twin is not None:
            source = twin.number if twin.copied_from is None else twin.copied_from
            copy = dataclasses.replace(
                trial, state=TrialState.COMPLETE, scores=twin.scores, copied_from=source
            )
            self._store.append(copy)
            self._take(copy)
            return
        self._store.start(trial)
        self._submit(trial)

    def _submit(self, trial: Trial) -> None:
        self._pending[trial.number, trial.split] = trial
        self._since[trial.number, trial.split] = time.monotonic()
        self._executor.submit(Job(trial, self._bar(trial)))
        if self._observer:
            self._observer.started(trial)

    def _bar(self, trial: Trial) -> Bar | None:
        """What a trial is raced against: the same again when it is resumed."""
        if self._racing is None or trial.raced_after is None:
            return None
        return self._racing.bar(self._told[: trial.raced_after])

    def _collect(self) -> None:
        """Stores what is finished, all of it at once, then tells it trial by trial.

        A worker that was given up may answer after all: the first answer is the trial.
        """
        finished: dict[tuple[int, Split], Trial] = {}
        for trial in self._executor.collect():
            key = trial.number, trial.split
            if key in self._pending and key not in finished:
                finished[key] = self._timed(trial)
        self._store.append(*finished.values())
        for key, trial in finished.items():
            del self._pending[key]
            self._take(trial)

    def _timed(self, trial: Trial) -> Trial:
        """The trial with what it waited; one that was looked up took no time."""
        passed = time.monotonic() - self._since.pop((trial.number, trial.split))
        if trial.scores is None or not trial.scores.seconds:
            return trial
        wait = max(0.0, passed - trial.scores.spent)
        scores = dataclasses.replace(trial.scores, seconds={**trial.scores.seconds, WAIT: wait})
        return dataclasses.replace(trial, scores=scores)

    def _take(self, trial: Trial, *, fresh: bool = True) -> None:
        self._told.append(trial)
        if trial.split == "search":
            if trial.state is TrialState.COMPLETE:
                self._by_recipe.setdefault(trial.recipe.id, trial)
            self._optimizer.tell([trial])
        if self._budget is not None:
            self._budget.tell(trial)
        if self._observer:
            self._observer.told(trial)
        self._hopeful |= trial.kind == "search" and trial.state is not TrialState.FAILED
        if fresh:
            self._check_hopeless()

    def _check_hopeless(self) -> None:
        """A study whose every first trial fails stops with the first traceback.

        So does one whose search trials fail while its reference points, which are merged by other
        methods, do not.
        """
        if self._hopeful:
            return
        enough = max(3, min(self._executor.capacity, 8))
        for kinds, name in (
            (("reference", "search", "final"), "trials"),
            (("search",), "search trials"),
        ):
            told = [t for t in self._told if t.kind in kinds]
            sitting = [t for t in self._told[self._n_replayed :] if t.kind in kinds]
            if len(sitting) >= enough and all(t.state is TrialState.FAILED for t in told):
                raise StudyError(
                    f"the first {len(sitting)} {name} all failed; the first one with:\n"
                    f"{sitting[0].error}"
                )

    def _finals(self) -> bool:
        """Scores the finalists on the select split, then those that it chose on the test split.

        A Pareto search keeps all its finalists; a single-objective one keeps the best on select.
        The reference points are scored on both.
        """
        chosen = finalists(self._view(self._told), self._n_finalists)
        references = [t for t in self._told if t.kind == "reference" and t.split == "search"]
        self._rescore(_distinct((*references, *chosen)), "select")
        run = self._view(self._told)
        if not run.meta.get("pareto"):
            numbers = {t.number for t in chosen}
            selected = [t for t in run.complete("select") if t.number in numbers]
            order = ranked(selected, run.scale("select"), run.constraints("select"))
            best = {t.number for t in order[:1]}
            chosen = [t for t in chosen if t.number in best] or chosen[:1]
        self._rescore(_distinct((*references, *chosen)), "test")
        return not self._stopping

    def _rescore(self, trials: Sequence[Trial], split: Split) -> None:
        documents = (self._view(()).meta.get("documents") or {}).get(split)
        if documents is not None and not any(documents.values()):
            return  # the user gave this split no documents
        known = {(t.number, t.split) for t in self._told} | set(self._pending)
        for trial in trials:
            if (trial.number, split) not in known:
                again = Trial(
                    trial.number, "final", trial.x, trial.recipe, split=split, label=trial.label
                )
                self._due.append(again)
        self._announce("finals", len(self._due))
        self._work()

    def _announce(self, phase: Phase, total: int) -> None:
        if self._observer:
            self._observer.phase(phase, total)


def _distinct(trials: Sequence[Trial]) -> list[Trial]:
    """COMPLETE trials, the first one of every recipe."""
    found: dict[str, Trial] = {}
    for trial in trials:
        if trial.state is TrialState.COMPLETE:
            found.setdefault(trial.recipe.id, trial)
    return list(found.values())


def reference_recipes(
    space: SearchSpace, pool: ExpertPool
) -> list[tuple[str, Recipe, Vector | None]]:
    """The points that every search has to beat.

    The base, each expert, the uniform average, and task arithmetic at 0.4 (the usual default, for
    example MergeBench's); base and task arithmetic only where there is a base.

    Args:
        space: Gives layer groups and models, and encodes the points that it can express.
        pool: The models.

    Returns:
        (label, recipe, x or None) of each.
    """
    k = len(pool.experts)
    rows: list[tuple[str, list[float]]] = []
    if pool.base is not None:
        rows.append((BASE, [0.0] * k))
    rows += [
        (EXPERT + e.name, [float(i == j) for j in range(k)]) for i, e in enumerate(pool.experts)
    ]
    if k > 1:
        rows.append((UNIFORM, [1.0 / k] * k))
    if pool.base is not None:
        rows.append((TASK_ARITHMETIC, [0.4] * k))
    found = []
    for label, row in rows:
        recipe = dataclasses.replace(
            space.recipe({}),
            method="task_arithmetic" if pool.base is not None else "linear",
            coefficients={"weight": np.tile(row, (len(space.groups), 1))},
            fixed={k: v for k, v in space.fixed.items() if k in EVERY_METHOD},
        )
        same = recipe
        if space.method == "linear" and np.isclose(sum(row), 1.0):  # then both are the same model
            same = dataclasses.replace(recipe, method="linear", fixed=space.fixed)
        try:
            x: Vector | None = space.encode(same)
        except ConfigError:
            x = None
        found.append((label, recipe, x))
    return found
