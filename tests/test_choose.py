"""Picking trials, and the verdict, on runs with a known answer."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest

from evomerge.choose import finalists, front, reason
from evomerge.errors import ConfigError, UnknownNameError
from evomerge.pick import pick
from evomerge.verdict import verdict
from tests import synthetic as s

ONE = (s.Objective("a", "task_a", "acc"),)
TWO = (*ONE, s.Objective("b", "task_b", "acc"))
RNG = np.random.default_rng(3)
HARD = RNG.normal(size=(2, 60))


def point(number, a, b=None, **more):
    """A trial whose scores are a (and b), on shared documents with a little noise of its own."""
    rng = np.random.default_rng(number + 100)
    rows = {}
    for name, value, hard in zip("ab", (a, b), HARD, strict=True):
        if value is not None:
            noise = rng.normal(0, 0.1, 60)
            rows[name] = value + (hard - hard.mean()) + (noise - noise.mean())
    return s.trial(number, rows, **more)


def reference(number, label, a, b=None, **more):
    return point(number, a, b, kind="reference", label=label, **more)


def two(*trials, experts=((1.0, 0.2), (0.2, 1.0)), **more):
    """A run of two accuracies with a base and two experts, so that units are 1."""
    references = [reference(0, "base", 0.1, 0.1)]
    references += [
        reference(i, f"expert {n}", *e) for i, n, e in zip((1, 2), "ab", experts, strict=True)
    ]
    return s.run([*references, *trials], TWO, **more)


def numbers(trials):
    return [t.number for t in trials]


def test_front_is_what_nothing_dominates():
    copy = dataclasses.replace(point(13, 0.8, 0.8), copied_from=10)
    run = two(point(10, 0.8, 0.8), point(11, 0.7, 0.7), s.failed(12), copy, point(14, 0.9, 0.5))
    assert numbers(front(run)) == [1, 2, 10, 14]
    assert numbers(front(run, kinds=("search",))) == [10, 14]
    assert front(run, "test") == []
    assert front(s.run([])) == []


def test_finalists_of_one_objective_are_the_best():
    trials = [point(i, v) for i, v in enumerate((0.1, 0.9, 0.5, 0.7, 0.3), 10)]
    run = s.run([reference(0, "expert a", 1.0), *trials, s.failed(30)], ONE, pareto=False)
    assert numbers(finalists(run, 3)) == [11, 13, 12]
    assert len(finalists(run, 50)) == 5
    with pytest.raises(ConfigError, match="n must be >= 1"):
        finalists(run, 0)


def test_finalists_of_a_pareto_search_are_spread():
    angles = np.linspace(0, np.pi / 2, 41)
    arc = [point(10 + i, math.sin(v), math.cos(v)) for i, v in enumerate(angles)]
    plain = numbers(finalists(two(*arc)))
    assert set(plain) == {28, 29, 30, 31, 32}
    spread = numbers(finalists(two(*arc, pareto=True)))
    assert 30 in spread
    assert {10, 50} <= set(spread)
    assert numbers(finalists(two(*arc, pareto=True))) == spread


def test_finalists_fill_up_when_the_front_is_small():
    trials = [point(10 + i, v, v) for i, v in enumerate(np.linspace(0.1, 0.9, 8))]
    assert numbers(finalists(two(*trials, pareto=True), 4)) == [17, 16, 15, 14]


def test_pick_best_reads_the_select_documents():
    run = two(point(10, 0.8, 0.8), point(11, 0.9, 0.9))
    assert pick(run, "best").number == 11
    finals = [
        point(10, 0.8, 0.8, kind="final", split="select"),
        point(11, 0.5, 0.5, kind="final", split="select"),
    ]
    run = two(point(10, 0.8, 0.8), point(11, 0.9, 0.9), *finals)
    chosen = pick(run, " best ")
    assert (chosen.number, chosen.split, chosen.kind) == (10, "search", "search")


def test_pick_best_may_be_a_reference_merge_and_never_one_model():
    run = two(
        point(10, 0.5, 0.5),
        reference(3, "uniform average", 0.6, 0.6),
        experts=((1.0, 0.9), (0.9, 1.0)),
    )
    assert pick(run, "best").number == 3
    with pytest.raises(ConfigError, match=r"nothing to pick\. No merge was scored yet, only"):
        pick(two(), "best")


def test_pick_knee_and_weights_choose_from_the_front():
    trials = [point(10, 0.9, 0.3), point(11, 0.75, 0.75), point(12, 0.3, 0.9), point(13, 0.7, 0.7)]
    run = two(*trials)
    assert pick(run, "knee").number == 11
    assert pick(run, "weights=a:1,b:1").number == 11
    assert pick(run, "weights=a:9,b:1").number == 10
    assert pick(run, "weights=b:1").number == 12
    assert pick(run, "weights= b : 1 , a:0").number == 12


def test_pick_knows_what_experts_dominate():
    run = two(point(10, 0.5, 0.5), point(11, 0.4, 0.6), experts=((1.0, 0.9), (0.9, 1.0)))
    assert pick(run, "weights=b:1").number == 11


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("bets", UnknownNameError, "Did you mean 'best'"),
        ("10", UnknownNameError, "ask for trial=10"),
        ("trial=ten", ConfigError, "expected a trial number"),
        ("trial=99", UnknownNameError, "unknown trial 99; runs/demo has 0 to 21"),
        ("trial=20", ConfigError, "trial 20 failed (ValueError: boom)"),
        ("trial=21", ConfigError, "still running"),
        ("weights=a", ConfigError, "expected OBJECTIVE:WEIGHT, got 'a'"),
        ("weights=", ConfigError, "expected OBJECTIVE:WEIGHT"),
        ("weights=a:x", ConfigError, "expected a weight >= 0, got 'x'"),
        ("weights=a:-1", ConfigError, "expected a weight >= 0"),
        ("weights=a:inf", ConfigError, "expected a weight >= 0"),
        ("weights=a:0,b:0", ConfigError, "at least one weight"),
        ("weights=a:1,a:2", ConfigError, "named twice"),
        ("weights=aa:1", UnknownNameError, "Did you mean 'a'"),
        ("weights=safety:1", UnknownNameError, "only reported"),
    ],
)
def test_pick_errors(spec, error, message):
    run = two(point(10, 0.5, 0.5), s.failed(20), pending=[s.running(21)])
    safety = s.Objective("safety", "t", "acc", search=False)
    run = dataclasses.replace(run, objectives=(*run.objectives, safety))
    with pytest.raises(error, match=re.escape(message)):
        pick(run, spec)


def test_pick_by_number():
    run = two(point(10, 0.5, 0.5), point(10, 0.6, 0.6, kind="final", split="test"))
    assert pick(run, "trial=10").split == "search"
    assert pick(run, "trial=1").label == "expert a"


def test_task_names_may_hold_colons():
    run = s.run([s.trial(1, {"x:y": [1.0, 0.0]})], (s.Objective("x:y", "t", "acc"),))
    assert pick(run, "weights=x:y:2").number == 1


def test_pick_with_bounds():
    """Units are 1: the best expert of each task scores 1, so 75% is .75."""
    trials = [point(10, 0.9, 0.3), point(11, 0.75, 0.75), point(12, 0.3, 0.9), point(13, 0.8, 0.7)]
    run = two(*trials)
    assert pick(run, "a>=85%,b").number == 10
    assert pick(run, "a>=70%,b").number == 11
    assert pick(run, "a >= 0.78 , b").number == 13
    assert pick(run, "b>=20%,a").number == 10
    assert pick(run, "a>=10%,b").number == 12
    assert pick(run, "a>=10%").number in {11, 13}, "no goal: the mean"
    assert pick(run, "a>=10%,a:9,b").number == 10
    assert pick(run, "a>=60%,b>=72%").number == 11


def test_pick_with_bounds_on_a_loss():
    loss = (*ONE, s.Objective("b", "task_b", "ppl", direction="minimize"))
    trials = [reference(0, "base", 0.1, -3.0), reference(1, "expert b", 0.1, -1.0)]
    run = s.run([*trials, point(10, 0.9, -2.6), point(11, 0.5, -1.5)], loss)
    assert pick(run, "b<=2.0,a").number == 11
    assert pick(run, "b<=2.8,a").number == 10
    assert pick(run, "b>=50%,a").number == 11, "half of the gain is recovered"
    assert pick(run, "b>=10%,a").number == 10
    with pytest.raises(ConfigError, match="b is better when lower; expected b<=2, got b>=2"):
        pick(run, "b>=2,a")
    with pytest.raises(ConfigError, match="normalised scores are better when higher"):
        pick(run, "b<=50%,a")


def test_pick_keeps_the_bounds_of_the_search_too():
    bounded = (dataclasses.replace(ONE[0], bound=0.5), TWO[1])
    trials = [point(10, 0.6, 0.3), point(11, 0.4, 0.8)]
    run = dataclasses.replace(two(*trials), objectives=bounded)
    assert pick(run, "a>=0.1,b").number == 10


def test_nobody_keeps_the_bounds():
    run = two(point(10, 0.9, 0.3), point(11, 0.75, 0.75))
    with pytest.raises(ConfigError, match=r"no merge keeps that. The nearest is trial 10, whose"):
        pick(run, "a>=99%,b")
    with pytest.raises(ConfigError, match="nothing to pick"):
        pick(two(), "a>=1%,b")


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("a>=x", ConfigError, "bound must be a number or a percentage"),
        ("a>=1,a>=2", ConfigError, "two bounds"),
        ("a<=1", ConfigError, "a is better when higher; expected a>=1, got a<=1"),
        ("aa>=1", UnknownNameError, "Did you mean 'a'"),
        ("a>=1%,bb", UnknownNameError, "Did you mean 'b'"),
        ("a>=1%,b:x", ConfigError, "expected a weight >= 0"),
        ("a>=1%,b,b", ConfigError, "named twice"),
        ("a>=1%,", UnknownNameError, "unknown objective ''"),
    ],
)
def test_pick_bound_errors(spec, error, message):
    with pytest.raises(error, match=re.escape(message)):
        pick(two(point(10, 0.5, 0.5)), spec)


def test_verdict_merge():
    v = verdict(two(point(10, 0.9, 0.9), reference(3, "uniform average", 0.7, 0.7)))
    assert (v.decision, v.headline, v.trial.number) == ("merge", "Merge: use trial 10", 10)
    assert v.rival.label in {"expert a", "expert b"}
    assert v.differences[0][0] is v.rival
    assert v.differences[0][1].mean == pytest.approx(0.3, abs=1e-6)
    assert "Trial 10 beats the best single expert" in v.sentence
    assert "0.200 above the uniform average" in v.sentence
    assert "0.800 above the base" in v.sentence
    assert "120 search documents" in v.sentence
    assert "The search has seen these documents" in v.sentence


def test_verdict_do_not_merge():
    v = verdict(two(point(10, 0.5, 0.5), experts=((1.0, 0.9), (0.8, 1.0))))
    assert (v.decision, v.headline) == ("keep", "Do not merge: use expert a")
    assert "below the best single expert (a)" in v.sentence
    assert v.differences[0][1].worse


def test_verdict_unclear():
    v = verdict(two(point(10, 0.951, 0.951), experts=((1.0, 0.9), (0.8, 1.0))))
    assert (v.decision, v.headline) == ("unclear", "No clear winner")
    assert "too little to tell from noise" in v.sentence


def test_verdict_may_favour_the_base():
    bpb = (s.Objective("a", "t", "bits_per_byte", direction="minimize"),)
    trials = [
        s.trial(0, {"a": -1 + HARD[0] * 0.1}, "reference", label="base"),
        s.trial(1, {"a": -2 + HARD[0] * 0.1}, "reference", label="expert a"),
        s.trial(2, {"a": -1.5 + HARD[0] * 0.1 + HARD[1] * 0.01}),
    ]
    v = verdict(s.run(trials, bpb))
    assert v.headline == "Do not merge: use the base"
    assert "the base (which no single expert beats)" in v.sentence


def test_verdict_reads_the_test_documents_when_there_are_any():
    final = {"kind": "final", "split": "test"}
    run = two(
        point(10, 0.9, 0.9),
        point(10, 0.4, 0.4, **final),
        *(
            point(i, *v, label=n, **final)
            for i, n, v in (
                (0, "base", (0.1, 0.1)),
                (1, "expert a", (1.0, 0.5)),
                (2, "expert b", (0.5, 1.0)),
            )
        ),
    )
    v = verdict(run)
    assert (v.split, v.decision) == ("test", "keep")
    assert "120 test documents" in v.sentence
    assert "has seen" not in v.sentence


def test_verdict_of_a_reference_merge_says_that_no_search_was_needed():
    v = verdict(two(point(10, 0.7, 0.7), reference(3, "uniform average", 0.9, 0.9)))
    assert v.headline == "Merge: use the uniform average"
    assert "no searched recipe did better" in v.sentence


def test_verdict_without_anything():
    assert verdict(s.run([])).decision == "none"
    v = verdict(s.run([s.failed(0), s.failed(1)]))
    assert v.headline == "Every trial failed"
    assert verdict(two()).headline == "Nothing merged yet"
    assert "only single models; expert" in verdict(two()).sentence
    assert "2 of 2 trials failed, the first with 'ValueError: boom'" in v.sentence
    v = verdict(s.run([point(1, 0.5)], ONE))
    assert v.decision == "none"
    assert "neither the base nor an expert was scored" in v.sentence


def test_an_unfinished_run_says_so():
    v = verdict(two(point(10, 0.9, 0.9), pending=[s.running(11)]))
    assert not v.finished
    assert v.headline == "So far, merge: use trial 10"
    assert not verdict(two(point(10, 0.9, 0.9), n_trials=5)).finished
    assert verdict(two(point(10, 0.9, 0.9), n_trials=1)).finished


def test_reason_is_the_last_line():
    assert reason(s.failed(1, "Traceback\n  File x\nKeyError: 'y'\n\n")) == "KeyError: 'y'"
    assert reason(s.failed(1, None)) == "no reason given"
