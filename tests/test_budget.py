"""What ends a search besides its number of trials."""

from __future__ import annotations

import dataclasses

import pytest

from evomerge.budget import Budget
from evomerge.errors import ConfigError
from evomerge.trial import Objective, Scores, Trial, TrialState
from tests.fakes import FakeExecutor, recipe
from tests.test_study import build, key

A = Objective("a", "task_a", "acc")
B = Objective("b", "task_b", "acc")
SIZE = 10


def trial(number: int, *values: float, **changes) -> Trial:
    scores = Scores(dict(zip("ab", values, strict=False)), {}, {})
    done = Trial(number, "search", None, recipe(number / 100), TrialState.COMPLETE, scores)
    return dataclasses.replace(done, **changes)


def expert(value: float) -> Trial:
    return trial(0, value, value, kind="reference", label="expert one")


def idle_after(budget: Budget, *trials: Trial) -> list[str]:
    told = []
    for t in trials:
        budget.tell(t)
        told.append(budget.spent())
    return told


def test_hours_begin_with_the_first_question() -> None:
    now = [1000.0]
    budget = Budget([A], SIZE, hours=2, clock=lambda: now[0])
    now[0] = 9e9
    assert budget.left() is None
    now[0] += 7199
    assert budget.left() is None
    now[0] += 1
    assert budget.left() == 0
    assert budget.spent() == "2 hours are over (budget.hours)"


def test_documents_are_never_exceeded() -> None:
    budget = Budget([A], SIZE, documents=55)
    assert budget.left() == 5
    budget.tell(expert(0.5))
    assert budget.left(n_pending=2) == 2
    budget.tell(trial(1, 0.5, copied_from=0))  # asked nothing
    budget.tell(trial(2, 0.5, state=TrialState.FAILED, scores=None))
    budget.tell(trial(3, 0.5, split="select"))
    assert budget.left() == 4
    lost = dataclasses.replace(trial(4, 0.1).scores, asked=3)
    budget.tell(trial(4, state=TrialState.PRUNED, scores=lost))  # only what it was asked
    assert budget.left() == 4  # 42 of 55
    for i in range(4):
        assert not budget.spent()
        budget.tell(trial(5 + i, 0.5))
    assert budget.left() == 0
    assert budget.spent() == "53 documents were asked (budget.documents)"


def test_target_is_normalised_and_keeps_the_bounds() -> None:
    bounded = dataclasses.replace(B, search=False, bound=0.4)
    budget = Budget([A, bounded], SIZE, target=1.1)
    reached = idle_after(
        budget, expert(0.5), trial(1, 0.54, 0.5), trial(2, 0.9, 0.3), trial(3, 0.56, 0.4)
    )
    assert reached == ["", "", "", "the target of 1.1 is reached (budget.target)"]


def test_a_late_reference_measures_what_was_told_before_it() -> None:
    budget = Budget([A], SIZE, target=1.1, patience=3)
    told = idle_after(budget, trial(1, 0.56), trial(2, 0.1), trial(3, 0.1), expert(0.5))
    assert told == ["", "", "", "the target of 1.1 is reached (budget.target)"]
    budget.tell(dataclasses.replace(expert(0.6), label="expert two"))
    assert not budget.spent(), "it is no 1.1 of the better expert"
    budget.tell(trial(4, 0.1))
    assert budget.spent() == "no progress for 3 trials (budget.patience)"


def test_a_pruned_trial_reaches_no_target() -> None:
    budget = Budget([A], SIZE, target=0.5)
    assert idle_after(budget, trial(1, 0.9, state=TrialState.PRUNED)) == [""]


def test_patience_counts_trials_since_the_best() -> None:
    budget = Budget([A], SIZE, patience=2)
    spent = idle_after(
        budget,
        expert(0.5),
        trial(1, 0.3),
        trial(2, 0.2),
        trial(3, 0.4),  # a new best
        trial(4, 0.4),  # no better
        trial(5, 0.9, state=TrialState.FAILED, scores=None),
    )
    assert spent == ["", "", "", "", "", "no progress for 2 trials (budget.patience)"]


def test_whatever_enters_a_front_is_progress() -> None:
    told = [trial(1, 0.5, 0.5), trial(2, 0.2, 0.6), trial(3, 0.1, 0.6), trial(4, 0.6, 0.6)]
    budget = Budget([A, B], SIZE, pareto=True, patience=1)
    assert [bool(s) for s in idle_after(budget, *told)] == [False, False, True, False]
    assert [t.number for t in budget._front] == [4]
    single = Budget([A, B], SIZE, patience=1)
    assert [bool(s) for s in idle_after(single, *told)] == [False, True, True, False]


def test_coming_closer_to_a_bound_is_progress() -> None:
    bounded = dataclasses.replace(B, search=False, bound=0.8)
    budget = Budget([A, bounded], SIZE, patience=1)
    told = [trial(1, 0.5, 0.5), trial(2, 0.4, 0.6), trial(3, 0.9, 0.5), trial(4, 0.1, 0.8)]
    assert [bool(s) for s in idle_after(budget, *told)] == [False, False, True, False]


@pytest.mark.parametrize(
    ("name", "value"),
    [("hours", 0), ("hours", "8"), ("documents", 0.5), ("patience", True), ("target", "best")],
)
def test_limits_out_of_range(name, value) -> None:
    with pytest.raises(ConfigError, match=rf"budget\.{name}: expected .* or null, got"):
        Budget([A], SIZE, **{name: value})


def test_a_study_ends_by_documents_and_a_larger_budget_continues_it(tmp_path) -> None:
    """With workers that answer out of order; the finals follow, and the store holds it all."""

    def sit(documents: int) -> list[tuple]:
        study, store = build(
            tmp_path, FakeExecutor(capacity=3), optimizer="random",
            budget=Budget([A], SIZE, documents=documents),
        )  # fmt: skip
        try:
            assert study.run()
            return [key(t) for t in store.load() if t.kind != "final"]
        finally:
            store.close()

    first = sit(10 * SIZE)
    assert len(first) == 10  # 4 references, 6 search trials
    assert len(sit(12 * SIZE)) == 12
    assert len(sit(10**6)) == 24  # n_trials
