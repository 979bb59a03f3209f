from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evomerge.budget import Budget
from evomerge.errors import StudyError
from evomerge.optimizers.base import Problem
from evomerge.optimizers.cma_es import CmaEs
from evomerge.optimizers.nsga2 import Nsga2
from evomerge.optimizers.random_search import Random
from evomerge.racing import Racing
from evomerge.run import Run
from evomerge.store import TrialStore, open_run
from evomerge.study import Observer, Study
from evomerge.trial import Trial, TrialState
from tests.fakes import AXES, DIM, OBJECTIVES, BoxSpace, FakeExecutor, recipe

SEARCHED = tuple(o for o in OBJECTIVES if o.search)
OPTIMIZERS: dict[str, Callable] = {"random": Random, "cma_es": CmaEs, "nsga2": Nsga2}


def references() -> list:
    half = np.full(DIM, 0.5)
    return [
        ("base", recipe(0.0), np.zeros(DIM)),
        ("expert one", recipe([[1.0, 0.0], [1.0, 0.0]]), np.array([1.0, 0.0, 1.0, 0.0])),
        ("expert two", recipe([[0.0, 1.0], [0.0, 1.0]]), None),
        ("uniform average", recipe(0.5), half),
    ]


def build(
    folder: Path,
    executor: FakeExecutor,
    *,
    optimizer: str = "cma_es",
    n_trials: int = 20,
    pareto: bool = False,
    refs: list | None = None,
    seed: int = 3,
    racing: Racing | None = None,
    budget: Budget | None = None,
    url: str | None = None,
    observer: Observer | None = None,
) -> tuple[Study, TrialStore]:
    meta = {"fingerprint": {"seed": seed}, "pareto": pareto, "n_trials": n_trials}
    store = TrialStore(folder, OBJECTIVES, meta, AXES, url)
    study = Study(
        space=BoxSpace(),
        optimizer=OPTIMIZERS[optimizer](Problem(DIM, seed, SEARCHED, np.full(DIM, 0.5))),
        executor=executor,
        store=store,
        references=references() if refs is None else refs,
        n_trials=n_trials,
        view=lambda trials: Run(folder, OBJECTIVES, tuple(trials), (), meta),
        n_finalists=2,
        racing=racing,
        budget=budget,
        observer=observer,
    )
    return study, store


def run(folder: Path, executor: FakeExecutor | None = None, **kwargs) -> list[Trial]:
    study, store = build(folder, executor or FakeExecutor(), **kwargs)
    try:
        assert study.run()
        return store.load()
    finally:
        store.close()


def key(t: Trial) -> tuple:
    values = () if t.scores is None else tuple(sorted(t.scores.values.items()))
    asked = None if t.scores is None else t.scores.asked
    return (t.number, t.kind, t.split, t.state, t.recipe.id, values, asked, t.raced_after)


def test_one_whole_study(tmp_path) -> None:
    trials = run(tmp_path)
    search = [t for t in trials if t.split == "search"]
    assert [t.number for t in search] == list(range(24))
    assert [t.kind for t in search] == ["reference"] * 4 + ["search"] * 20
    test = {t.number for t in trials if t.split == "test"}
    assert {0, 1, 2, 3} < test
    assert len(test) == 5  # the references and the one finalist that select chose
    assert len({t.number for t in trials if t.split == "select"}) == 6
    assert all("extra" in t.scores.values for t in trials if t.split == "test")


def test_pareto_search_tests_every_finalist(tmp_path) -> None:
    trials = run(tmp_path, optimizer="nsga2", pareto=True)
    tested, selected = ({t.number for t in trials if t.split == s} for s in ("test", "select"))
    assert tested == selected


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_seed_one_worker_identical(tmp_path, optimizer) -> None:
    a = run(tmp_path / "a", optimizer=optimizer)
    b = run(tmp_path / "b", optimizer=optimizer)
    assert list(map(key, a)) == list(map(key, b))
    other = run(tmp_path / "c", optimizer=optimizer, seed=4)
    assert list(map(key, a)) != list(map(key, other))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dies_after", [0, 1, 3, 4, 5, 11, 23, 24, 26, 31])
def test_killed_at_any_moment_it_resumes_to_the_same_trials(
    tmp_path, optimizer, dies_after
) -> None:
    whole = run(tmp_path / "whole", optimizer=optimizer)
    first = FakeExecutor(dies_after=dies_after)
    study, store = build(tmp_path / "cut", first, optimizer=optimizer)
    with pytest.raises(SystemExit):
        study.run()
    store.close()
    second = FakeExecutor()
    again = run(tmp_path / "cut", second, optimizer=optimizer)
    assert list(map(key, again)) == list(map(key, whole))
    assert not set(first.evaluated) & set(second.evaluated)
    retried = [t for t in again if t.attempt]
    assert len(retried) <= 1  # only what was in flight


MEAN, FRONT = Racing(SEARCHED, pareto=False), Racing(SEARCHED, pareto=True)


@pytest.mark.parametrize(("optimizer", "racing"), [("cma_es", MEAN), ("nsga2", FRONT)])
def test_a_raced_study(tmp_path, optimizer, racing) -> None:
    executor = FakeExecutor()
    trials = run(tmp_path, executor, optimizer=optimizer, racing=racing, pareto=racing.pareto)
    pruned = [t for t in trials if t.state is TrialState.PRUNED]
    assert len(pruned) >= 5
    assert {(t.kind, t.split) for t in pruned} == {("search", "search")}
    assert all(0 < t.scores.asked < 32 for t in pruned)
    assert all(t.scores.asked is None for t in trials if t not in pruned)
    assert all(bar is None for (number, split), bar in executor.bars.items() if split != "search")
    assert all(executor.bars[number, "search"] is None for number in range(4)), "references"
    finals = {t.number for t in trials if t.split != "search"}
    assert not finals & {t.number for t in pruned}
    assert [t.number for t in trials if t.kind == "search"] == list(range(4, 24))


@pytest.mark.parametrize("dies_after", [3, 5, 9, 14, 23, 26])
@pytest.mark.parametrize(("optimizer", "racing"), [("cma_es", MEAN), ("nsga2", FRONT)])
def test_a_raced_study_killed_at_any_moment(tmp_path, optimizer, racing, dies_after) -> None:
    setting = {"optimizer": optimizer, "racing": racing}
    whole = run(tmp_path / "whole", **setting)
    study, store = build(tmp_path / "cut", FakeExecutor(dies_after=dies_after), **setting)
    with pytest.raises(SystemExit):
        study.run()
    store.close()
    assert list(map(key, run(tmp_path / "cut", **setting))) == list(map(key, whole))


def test_what_was_running_is_raced_against_the_bar_it_was_started_with(tmp_path) -> None:
    """Four in flight, told out of order: later trials may not raise the bar of earlier ones."""
    first = FakeExecutor(4, seed=1, dies_after=15)
    study, store = build(tmp_path, first, racing=MEAN)
    with pytest.raises(SystemExit):
        study.run()
    store.close()
    left = list(open_run(tmp_path).running)
    assert len(left) == 4
    second = FakeExecutor(4)
    run(tmp_path, second, racing=MEAN)
    for trial in left:
        before, again = (e.bars[trial.number, "search"] for e in (first, second))
        assert before.losses == again.losses
        np.testing.assert_array_equal(before.values, again.values)
        for name, rows in before.rows.items():
            np.testing.assert_array_equal(rows, again.rows[name])


def test_a_pruned_trial_is_no_source_of_copies(tmp_path) -> None:
    class Stubborn(Random):
        def ask(self, n, first, pending=()):
            return [np.full(DIM, 0.25)] * n

    executor = FakeExecutor()
    study, store = build(tmp_path, executor, n_trials=3, racing=MEAN)
    study._optimizer = Stubborn(Problem(DIM, 0, SEARCHED, np.full(DIM, 0.5)))
    assert study.run()
    search = [t for t in store.load() if t.kind == "search" and t.split == "search"]
    store.close()
    assert [t.state for t in search] == [TrialState.PRUNED] * 3
    assert [t.copied_from for t in search] == [None] * 3
    assert [t for t in open_run(tmp_path).trials if t.split == "test"], "references are tested"


def test_killed_between_store_and_tell(tmp_path, monkeypatch) -> None:
    whole = run(tmp_path / "whole")
    study, store = build(tmp_path / "cut", FakeExecutor())
    told = 0

    def take(trial: Trial) -> None:
        nonlocal told
        told += 1
        if told == 10:
            raise SystemExit
        original(trial)

    original = study._take
    monkeypatch.setattr(study, "_take", take)
    with pytest.raises(SystemExit):
        study.run()
    store.close()
    assert list(map(key, run(tmp_path / "cut"))) == list(map(key, whole))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_extending_equals_the_longer_study(tmp_path, optimizer) -> None:
    longer = run(tmp_path / "longer", optimizer=optimizer, n_trials=20)
    run(tmp_path / "grown", optimizer=optimizer, n_trials=7)
    executor = FakeExecutor()
    grown = run(tmp_path / "grown", executor, optimizer=optimizer, n_trials=20)

    def searched(trials: list[Trial]) -> list:
        return [key(t) for t in trials if t.split == "search"]

    assert searched(grown) == searched(longer)
    assert sum(split == "search" for _, split in executor.evaluated) == 13


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_many_workers_out_of_order_with_failures(tmp_path, optimizer) -> None:
    executor = FakeExecutor(4, seed=1, fails=lambda t: t.kind == "search" and t.number % 5 == 0)
    trials = run(tmp_path, executor, optimizer=optimizer, n_trials=40)
    search = [t for t in trials if t.kind == "search" and t.split == "search"]
    assert sorted(t.number for t in search) == list(range(4, 44))
    failed = [t for t in search if t.state is TrialState.FAILED]
    assert {t.number for t in failed} == set(range(5, 44, 5))
    assert all("on purpose" in t.error for t in failed)


class Full(FakeExecutor):
    """Notes how many trials ran each time the driver came to collect."""

    def __init__(self, capacity: int, **kwargs) -> None:
        super().__init__(capacity, **kwargs)
        self.running: list[int] = []

    def collect(self, timeout: float | None = None) -> list[Trial]:
        self.running.append(len(self._queue))
        return super().collect(timeout)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_worker_waits_for_the_reference_points(tmp_path, optimizer) -> None:
    executor = Full(12, seed=1)
    trials = run(tmp_path, executor, optimizer=optimizer, n_trials=30)
    assert executor.running[:10] == [12] * 10
    assert [t.number for t in trials if t.kind == "reference" and t.split == "search"] != [0, 1]
    assert list(executor.bars)[:4] == [(n, "search") for n in range(4)], "references start first"


def test_what_runs_beside_the_references_is_not_raced(tmp_path) -> None:
    executor = Full(8, seed=1)
    trials = run(tmp_path, executor, racing=MEAN, n_trials=30)
    told = [t.number for t in trials]
    searched = [t for t in trials if t.kind == "search" and t.split == "search"]
    free = [t.number for t in searched if t.raced_after is None]
    assert free[:4]
    assert set(free) == set(range(4, 4 + len(free)))
    assert min(t.raced_after for t in searched if t.raced_after is not None) >= max(
        told.index(n) + 1 for n in range(4)
    )


def test_what_a_trial_waited_is_stored_beside_what_its_worker_spent(tmp_path) -> None:
    class Slow(FakeExecutor):
        def collect(self, timeout: float | None = None) -> list[Trial]:
            time.sleep(0.05)
            (done,) = super().collect(timeout)
            seconds = {"merge": 0.01, "score": 0.02}
            return [replace(done, scores=replace(done.scores, seconds=seconds))]

    for t in run(tmp_path, Slow(), n_trials=2):
        assert (t.scores.seconds["merge"], t.scores.seconds["score"]) == (0.01, 0.02)
        assert t.scores.seconds["wait"] >= 0.02
        assert t.scores.spent == pytest.approx(0.03)


def test_known_recipes_are_copied_not_evaluated(tmp_path) -> None:
    refs = [*references(), ("again", recipe(0.5), np.full(DIM, 0.5))]
    executor = FakeExecutor()
    trials = run(tmp_path, executor, refs=refs)
    again = next(t for t in trials if t.label == "again")
    # the uniform average may still be running when its twin is submitted; once told, it is copied
    twin = next(t for t in trials if t.label == "uniform average")
    assert again.scores.values == twin.scores.values


def test_a_proposal_that_was_scored_already_is_copied(tmp_path) -> None:
    class Stubborn(Random):
        def ask(self, n, first, pending=()):
            return [np.full(DIM, 0.25)] * n

    executor = FakeExecutor()
    study, store = build(tmp_path, executor, n_trials=5)
    study._optimizer = Stubborn(Problem(DIM, 0, SEARCHED, np.full(DIM, 0.5)))
    assert study.run()
    search = [t for t in store.load() if t.kind == "search" and t.split == "search"]
    store.close()
    assert len(search) == 5
    assert [t.copied_from for t in search] == [None, 4, 4, 4, 4]
    assert executor.evaluated.count((4, "search")) == 1
    assert len([e for e in executor.evaluated if e[1] == "search"]) == 5
    run_ = open_run(tmp_path)
    assert run_.trials[-1].scores is not None
    copied = next(t for t in run_.trials if t.copied_from is not None)
    assert copied.scores.per_example["a"] is not None


def test_hopeless_study_stops_with_the_first_traceback(tmp_path) -> None:
    study, store = build(tmp_path, FakeExecutor(fails=lambda t: True))
    with pytest.raises(StudyError, match="Boom: on purpose"):
        study.run()
    store.close()


def test_search_trials_that_all_fail_stop_it_although_the_references_do_not(tmp_path) -> None:
    """They are merged by other methods: a budget is not spent on a method that cannot work."""
    executor = FakeExecutor(fails=lambda t: t.kind == "search")
    study, store = build(tmp_path, executor, n_trials=20)
    with pytest.raises(StudyError, match=r"search trials all failed.*\n.*Boom: on purpose"):
        study.run()
    store.close()
    assert sum(t.kind == "search" for t in open_run(tmp_path).trials) < 10
    once = FakeExecutor(fails=lambda t: t.kind == "search" and t.number > 5)
    assert build(tmp_path / "other", once, n_trials=20)[0].run() is not None


def test_stop_finishes_what_runs_and_continues_later(tmp_path) -> None:
    whole = run(tmp_path / "whole")

    class Stopper:
        def asked(self, n, seconds): ...
        def phase(self, phase, total): ...
        def started(self, trial): ...
        def told(self, trial):
            if trial.number == 12:
                study.stop()

    study, store = build(tmp_path / "cut", FakeExecutor())
    study._observer = Stopper()
    assert not study.run()
    assert all(t.finished for t in store.load())
    store.close()
    assert list(map(key, run(tmp_path / "cut"))) == list(map(key, whole))


def test_dry_run_keeps_what_it_scored(tmp_path) -> None:
    study, store = build(tmp_path, FakeExecutor())
    assert not study.run(dry=True)
    assert [t.number for t in store.load()] == [0, 1]
    store.close()
    executor = FakeExecutor()
    run(tmp_path, executor)
    assert (0, "search") not in executor.evaluated
    assert (2, "search") in executor.evaluated


def test_no_select_documents_still_tests_the_best(tmp_path) -> None:
    study, store = build(tmp_path, FakeExecutor())
    documents = {"search": {"a": 4}, "select": {"a": 0}, "test": {"a": 4}}
    study._view = lambda trials: Run(
        tmp_path, OBJECTIVES, tuple(trials), (), {"documents": documents}
    )
    assert study.run()
    trials = store.load()
    store.close()
    assert not [t for t in trials if t.split == "select"]
    assert [t for t in trials if t.split == "test" and not t.label]


def test_a_hopeless_run_can_continue_once_the_cause_is_gone(tmp_path) -> None:
    study, store = build(tmp_path, FakeExecutor(fails=lambda t: True))
    with pytest.raises(StudyError):
        study.run()
    store.close()
    trials = run(tmp_path)
    assert sum(t.state is TrialState.COMPLETE for t in trials if t.kind == "search") >= 19


def test_one_expert_has_no_average_beside_it(family) -> None:
    from evomerge.experts import ExpertPool
    from evomerge.space import SearchSpace
    from evomerge.study import reference_recipes

    pool = ExpertPool.open(str(family["base"]), {"a": str(family["expert_a"])})
    space = SearchSpace({"method": "task_arithmetic"}, pool)
    labels = [label for label, _, _ in reference_recipes(space, pool)]
    assert labels == ["base", "expert a", "task arithmetic 0.4"]


def test_experts_are_points_of_a_plain_weighted_sum_too(family) -> None:
    """With a base the references are task arithmetic, yet one expert alone is the same model."""
    from evomerge.experts import ExpertPool
    from evomerge.space import SearchSpace, load_space
    from evomerge.study import reference_recipes

    experts = {n: str(family[f"expert_{n}"]) for n in ("a", "b")}
    pool = ExpertPool.open(str(family["base"]), experts)
    space = SearchSpace(load_space("niches"), pool)
    points = {label: x for label, _, x in reference_recipes(space, pool) if x is not None}
    assert set(points) == {"expert a", "expert b", "uniform average"}
    weights = space.decode(points["expert b"]).coefficients["weight"]
    assert np.allclose(weights, [0, 1])


def test_references_are_rounded_as_the_search_is(family) -> None:
    """Whatever gain the search finds is the coefficients', not the rounding's."""
    from evomerge.experts import ExpertPool
    from evomerge.space import SearchSpace
    from evomerge.study import reference_recipes

    pool = ExpertPool.open(str(family["base"]), {n: str(family[f"expert_{n}"]) for n in "ab"})
    for method in ("task_arithmetic", "linear"):
        space = SearchSpace({"method": method, "fixed": {"rounding": "dither"}}, pool)
        found = reference_recipes(space, pool)
        assert all(r.fixed == {"rounding": "dither"} for _, r, _ in found)
        assert any(x is not None for _, _, x in found), "still points of the space"
