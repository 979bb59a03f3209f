"""Bounds on objectives, scalarisations, and what they do to choosing."""

import dataclasses

import pytest

from evomerge.choose import finalists, front
from evomerge.constraints import Constraints
from evomerge.errors import ConfigError, UnknownNameError
from evomerge.pick import pick
from evomerge.report.as_json import to_json
from evomerge.report.terminal import text
from evomerge.scale import Scale
from evomerge.trial import Objective
from evomerge.verdict import verdict
from tests import synthetic as s
from tests.test_choose import numbers, point, two

ACC = Objective("math", "t", "acc", bound="90%")
LOSS = Objective("code", "t", "bits", direction="minimize", bound=1.5)
SHARE_OF_GAIN = dataclasses.replace(LOSS, bound="50%")


def told(*rows):
    """References: base, then experts, by (math, code) in signed values."""
    labels = ["base", "expert math", "expert code"]
    return [
        s.trial(i, {"math": (m, 0.0), "code": (c, 0.0)}, kind="reference", label=label)
        for i, (label, (m, c)) in enumerate(zip(labels, rows, strict=True))
    ]


REFERENCES = told((0.2, -3.0), (0.8, -2.9), (0.3, -1.0))


def test_bounds_are_read_in_the_direction_of_their_objective():
    found = Constraints.fit((ACC, LOSS), REFERENCES)
    assert found.names == ("math", "code")
    assert found.limit == pytest.approx((0.72, -1.5))  # 90% of 0.8; at most 1.5
    assert found.slacks({"math": 0.72, "code": -1.5}) == pytest.approx([0, 0])
    assert found.slacks({"math": 0.8, "code": -1.1}) == pytest.approx([0.1, 0.2])
    assert found.violation({"math": 0.64, "code": -1.7}) == pytest.approx(0.1 + 0.1)
    assert found.broken({"math": 0.64, "code": -1.0}) == ("math",)
    assert found.kept({"math": 0.9, "code": -1.0})


def test_a_share_of_a_loss_is_a_share_of_the_gain():
    found = Constraints.fit((SHARE_OF_GAIN,), REFERENCES)
    assert found.limit == pytest.approx((-2.0,))  # half way from 3 to 1


def test_an_expert_keeps_its_own_score_in_full():
    whole = dataclasses.replace(ACC, bound="100%")
    rows = told((0.1, -3), (0.1 + 0.2, -3), (0.1, -2))
    assert Constraints.fit((whole,), rows).kept({"math": 0.1 + 0.2})


def test_unknown_scores_are_not_feasible():
    found = Constraints.fit((ACC,), REFERENCES)
    assert found.violation({"math": float("nan")}) == float("inf")
    assert found.violation({}) == float("inf")
    assert Constraints.fit((Objective("a", "t", "acc"),), ()).kept({})


@pytest.mark.parametrize("bad", ["high", "90", True, float("nan"), "x%", [1]])
def test_odd_bounds_are_refused(bad):
    if bad == "90":
        assert Objective("a", "t", "acc", bound="90").bound_value == (90.0, False)
        return
    with pytest.raises(ConfigError, match="bound"):
        Objective("a", "t", "acc", bound=bad)


def bounded(run, **bounds):
    """The same run with bounds on its objectives."""
    objectives = [dataclasses.replace(o, bound=bounds.get(o.name)) for o in run.objectives]
    return dataclasses.replace(run, objectives=tuple(objectives))


def test_choosing_keeps_to_the_bounds():
    run = two(point(10, 0.3, 1.4), point(11, 0.8, 0.8), point(12, 0.85, 0.6), n_trials=3)
    assert pick(run, "best").number == 10
    kept = bounded(run, a=0.75)
    assert pick(kept, "best").number == 11
    assert numbers(front(kept)) == [1, 11, 12]
    assert numbers(finalists(kept)) == [11, 12, 10]
    assert pick(kept, "weights=b:1").number == 11
    entries = {t["number"]: t for t in to_json(kept)["trials"]}
    assert entries[11]["scores"]["feasible"]
    assert not entries[10]["scores"]["feasible"]


def test_where_nothing_is_feasible_the_nearest_is_chosen_and_said_to_break_the_bound():
    run = bounded(two(point(10, 0.3, 0.9), point(11, 0.7, 0.8), n_trials=2), a=2.0)
    assert pick(run, "best").number == 11
    assert numbers(front(run)) == [1]
    assert "breaks a bound: a is 0.700, wanted at least 2.000" in verdict(run).sentence


def test_a_merge_that_breaks_a_bound_does_not_beat_an_expert_that_keeps_it():
    run = bounded(two(point(10, 0.9, 1.4), n_trials=1), a=0.95)
    answer = verdict(run)
    assert answer.decision == "keep"
    assert answer.headline == "Do not merge: use expert a"


def test_tables_show_bounds_of_objectives_that_are_not_optimised():
    run = two(point(10, 0.9, 0.9), n_trials=1)
    hidden = dataclasses.replace(run.objectives[1], search=False, bound=0.95)
    run = dataclasses.replace(run, objectives=(run.objectives[0], hidden))
    assert [o.name for o in run.guiding] == ["a", "b"]
    shown = text(run)
    assert "≥ 0.95" in shown
    assert "breaks a bound: b is 0.900" in shown


def test_scalarisations():
    two_goals = (Objective("a", "t", "acc", weight=3), Objective("b", "t", "acc"))
    values = {"a": 0.8, "b": 0.4}
    mean = 0.75 * 0.8 + 0.25 * 0.4

    def scalar(name):
        return Scale.fit(two_goals, (), scalarisation=name).scalar(values)

    assert scalar("mean") == pytest.approx(mean)
    assert scalar("worst") == pytest.approx(0.4 + 0.05 * mean)
    # 1 + min(1.5 * (0.8 - 1), 0.5 * (0.4 - 1)) = 1 - 0.3
    assert scalar("chebyshev") == pytest.approx(0.7 + 0.05 * mean)
    equal = tuple(dataclasses.replace(o, weight=1.0) for o in two_goals)
    worst, chebyshev = (
        Scale.fit(equal, (), scalarisation=n).scalar(values) for n in ("worst", "chebyshev")
    )
    assert worst == pytest.approx(chebyshev)
    with pytest.raises(UnknownNameError, match="worst"):
        Scale.fit(two_goals, (), scalarisation="wurst")


def test_objectives_without_weight_do_not_decide_the_worst():
    goals = (Objective("a", "t", "acc"), Objective("b", "t", "acc", weight=0.0))
    scale = Scale.fit(goals, (), scalarisation="worst")
    assert scale.scalar({"a": 0.8, "b": 0.0}) == pytest.approx(0.8 + 0.05 * 0.8)


def test_the_best_follows_the_scalarisation():
    rows = (point(10, 1.6, 0.2), point(11, 0.8, 0.8))
    assert pick(two(*rows, n_trials=2), "best").number == 10
    worst = two(*rows, n_trials=2, scalarisation="worst")
    assert pick(worst, "best").number == 11
    assert "worst task" in text(worst)
