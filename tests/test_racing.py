"""The statistics of racing: how often it errs, what it saves, and what it estimates."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from evomerge.errors import ConfigError
from evomerge.racing import Racing
from evomerge.scale import Scale
from evomerge.trial import Objective, Scores, Trial, TrialState
from tests.fakes import recipe

N = 100
A, B = Objective("a", "a", "acc"), Objective("b", "b", "acc")


def trial(number: int, **rows) -> Trial:
    arrays = {k: np.asarray(v, dtype=np.float32) for k, v in rows.items()}
    values = {k: float(v.astype(np.float64).mean()) for k, v in arrays.items()}
    scores = Scores(values, dict.fromkeys(values, 0.0), arrays)
    return Trial(number, "search", None, recipe(0.5), TrialState.COMPLETE, scores)


def asked(rng, rows: dict, share: float, places: dict) -> dict:
    seen = {}
    for name, row in rows.items():
        seen[name] = np.full(len(row), np.nan)
        chosen = places[name][: math.ceil(len(row) * share)]
        seen[name][chosen] = row[chosen]
    return seen


def race(rng, bar, rows: dict) -> float:
    """The share of the documents after which a candidate is stopped; 1 for never."""
    places = {name: rng.permutation(len(row)) for name, row in rows.items()}
    for share in bar.shares[:-1]:
        if bar.verdict(asked(rng, rows, share, places)).stop:
            return share
    return 1.0


def hits(rng, chance) -> np.ndarray:
    return (rng.random(N) < chance).astype(np.float64)


def tied(rng, row: np.ndarray, kind: str) -> np.ndarray:
    """Another row of the same mean."""
    d = np.zeros(N)
    if kind == "losses":
        d = rng.standard_t(4, N) * 0.05
    else:  # as many hits gained as lost
        ones, zeros = np.flatnonzero(row == 1), np.flatnonzero(row == 0)
        n = min(12, len(ones), len(zeros))
        d[rng.choice(ones, n, replace=False)] = -1
        d[rng.choice(zeros, n, replace=False)] = 1
    return row + d - d.mean()


@pytest.mark.parametrize("error", [0.05, 0.3])
@pytest.mark.parametrize("kind", ["hits", "losses"])
def test_a_candidate_that_ties_is_stopped_no_more_often_than_it_says(kind, error) -> None:
    rng = np.random.default_rng(0)
    runs = 400
    stopped = 0
    for i in range(runs):
        if i % 10 == 0:
            best = hits(rng, 0.6) if kind == "hits" else rng.normal(0, 1, N)
            worse = [best - (rng.random(N) < 0.3) * 0.5 for _ in range(5)]
            told = [trial(k, a=row) for k, row in enumerate([*worse, best])]
            bar = Racing((A,), pareto=False, error=error, first=0.0625).bar(told)
        stopped += race(rng, bar, {"a": tied(rng, best, kind)}) < 1
    assert stopped / runs <= error + 2 * math.sqrt(error * (1 - error) / runs)


def test_power_a_clearly_worse_candidate_is_asked_few_documents() -> None:
    rng = np.random.default_rng(1)
    best = rng.normal(0, 1, N)
    told = [trial(k, a=best - rng.random(N) * 0.2) for k in range(6)] + [trial(6, a=best)]
    bar = Racing((A,), pareto=False).bar(told)
    shares = [race(rng, bar, {"a": best - 0.3 + rng.normal(0, 0.2, N)}) for _ in range(40)]
    assert np.mean(shares) < 0.2


def test_twelve_equal_answers_are_no_proof() -> None:
    """A candidate that agrees with the second best so far may still be the best."""
    rng = np.random.default_rng(2)
    best = hits(rng, 0.6)
    second = best.copy()
    second[np.flatnonzero(best)[:2]] = 0
    bar = Racing((A,), pareto=False, error=0.3, first=0.12).bar(
        [trial(0, a=second), trial(1, a=second), trial(2, a=best)]
    )
    seen = np.full(N, np.nan)
    same = np.flatnonzero(second == best)[:12]
    seen[same] = second[same]
    assert not bar.verdict({"a": seen}).stop


def test_where_all_documents_were_asked_nothing_is_uncertain() -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(0, 1, (4, N)).astype(np.float32)
    bar = Racing((A,), pareto=False).bar([trial(i, a=row) for i, row in enumerate(rows)])
    new = rng.normal(0, 1, N)
    found = bar.verdict({"a": new})
    assert found.values["a"] == pytest.approx(new.mean())
    assert found.stderr["a"] == 0
    assert found.stop == (new.mean() < bar.values.max())


@pytest.mark.parametrize("k", [7, 13, 25, 50])
def test_estimates_of_weighted_means_cover_the_truth(k) -> None:
    """Rates of documents of unequal length, stored as the evaluators store bits per byte."""
    rng = np.random.default_rng(4)
    w = rng.lognormal(0, 0.5, N)
    w /= w.mean()
    z, ours, plain = [], [], []
    for _ in range(100):
        directions = rng.normal(0, 1, (3, N))
        rates = rng.normal(0, 1, N) + rng.normal(0, 0.2, (9, 3)) @ directions
        rates += rng.normal(0, 0.05, rates.shape)
        truth = rates @ w / N
        stored = truth[:, None] + w * (rates - truth[:, None])
        bar = Racing((A,), pareto=False).bar([trial(i, a=row) for i, row in enumerate(stored[:8])])
        seen = np.full(N, np.nan)
        chosen = rng.permutation(N)[:k]
        seen[chosen] = rates[8, chosen]
        found = bar.verdict({"a": seen}, {"a": w})
        ours.append(found.values["a"] - truth[8])
        z.append(ours[-1] / found.stderr["a"])
        plain.append(np.average(rates[8, chosen], weights=w[chosen]) - truth[8])
    errors = np.array(z)
    assert np.mean(np.abs(errors) < 2.0) > 0.9
    assert np.sqrt(np.mean(errors**2)) < 1.3
    assert np.std(ours) < 0.5 * np.std(plain)


@pytest.mark.parametrize("scalarisation", ["mean", "worst", "chebyshev"])
def test_the_terms_of_a_scalarisation_are_the_scalarisation(scalarisation) -> None:
    scale = Scale(("a", "b"), (0.1, -2.0), (0.5, 2.0), (0.3, 0.7), scalarisation)
    for values in ({"a": 0.4, "b": -1.0}, {"a": 0.9, "b": -3.0}):
        f = np.array([values["a"], values["b"]])
        assert min(a @ f + c for a, c in scale.terms()) == pytest.approx(scale.scalar(values))


@pytest.mark.parametrize("scalarisation", ["mean", "worst", "chebyshev"])
def test_one_goal_of_several_objectives(scalarisation) -> None:
    rng = np.random.default_rng(6)
    a, b = rng.normal(1, 0.1, N), rng.normal(1, 0.1, N)
    bar = Racing((A, B), pareto=False, scalarisation=scalarisation).bar([trial(0, a=a, b=b)])
    assert race(rng, bar, {"a": a - 0.3, "b": b - 0.3}) < 1
    assert race(rng, bar, {"a": a + 0.3, "b": b + 0.3}) == 1
    lopsided = race(rng, bar, {"a": a + 0.9, "b": b - 0.3})
    assert (lopsided == 1) == (scalarisation == "mean")


def test_a_front_is_left_only_by_what_one_member_beats_everywhere() -> None:
    rng = np.random.default_rng(7)
    base = rng.normal(0, 1, N)
    told = [trial(0, a=base + 1, b=base), trial(1, a=base, b=base + 1), trial(2, a=base, b=base)]
    bar = Racing((A, B), pareto=True).bar(told)
    assert len(bar.losses) == 2, "a dominated trial is no rival"
    noise = rng.normal(0, 0.01, N)
    assert race(rng, bar, {"a": base + 0.8 + noise, "b": base - 0.2 + noise}) < 1
    assert race(rng, bar, {"a": base + 0.8 + noise, "b": base + 0.2 + noise}) == 1
    assert race(rng, bar, {"a": base + 1.2, "b": base - 5}) == 1


def test_between_the_members_of_a_front_the_error_is_kept_however_many_they_are() -> None:
    """In a dent of a front a candidate equals one member in one objective, one in another."""
    rng, error, runs = np.random.default_rng(11), 0.3, 150
    stopped = 0
    for i in range(runs):
        if i % 15 == 0:
            base = rng.normal(0, 1, N)
            a = [base + 0.5 * k for k in range(8)]
            b = [base - 0.5 * k for k in range(8)]
            told = [trial(k, a=a[k], b=b[k]) for k in range(8)]
            bar = Racing((A, B), pareto=True, error=error, first=0.0625).bar(told)
            assert len(bar.losses) == 8
        k = rng.integers(7)
        rows = {"a": tied(rng, a[k], "losses"), "b": tied(rng, b[k + 1], "losses")}
        stopped += race(rng, bar, rows) < 1
    assert 0.02 < stopped / runs <= error + 2 * math.sqrt(error * (1 - error) / runs)


def test_a_lead_within_the_tolerance_does_not_count() -> None:
    rng = np.random.default_rng(12)
    base = rng.normal(0, 1, N)
    told = [trial(0, a=base + 1, b=base), trial(1, a=base, b=base + 1)]
    noise = rng.normal(0, 0.01, N)
    for tolerance, lead, share in ((0, 0.1, 1), (0.2, 0.1, 0.125), (0.2, 0.3, 1)):
        bar = Racing((A, B), pareto=True, tolerance=tolerance).bar(told)
        assert race(rng, bar, {"a": base + 1 + lead + noise, "b": base - noise}) == share


@pytest.mark.parametrize(
    "wrong", [{"error": 0}, {"first": 1}, {"growth": 1}, {"tolerance": -0.1}, {"error": True}]
)
def test_settings_out_of_range_are_refused(wrong) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"racing.{name}: expected"):
        Racing((A,), pareto=False, **wrong)


def test_a_task_that_nobody_solves_leaves_the_race_to_the_others() -> None:
    rng = np.random.default_rng(10)
    a, none = rng.normal(0, 1, N), np.zeros(N)
    told = [trial(i, a=a - 0.1 * i + rng.normal(0, 0.05, N), b=none) for i in range(4)]
    bar = Racing((A, B), pareto=False).bar(told)
    assert race(rng, bar, {"a": a - 0.5, "b": none}) < 1
    assert race(rng, bar, {"a": a + 0.5, "b": none}) == 1


def test_bounds_and_the_first_feasible_trial() -> None:
    rng = np.random.default_rng(8)
    safe = dataclasses.replace(B, search=False, bound=0.5)
    a, b = rng.normal(0, 1, N), rng.normal(1, 0.1, N)
    racing = Racing((A, safe), pareto=False)
    assert racing.bar([]) is None
    assert racing.bar([trial(0, a=a, b=b - 2)]) is None, "nothing keeps the bound yet"
    bar = racing.bar([trial(0, a=a, b=b - 2), trial(1, a=a - 1, b=b)])
    noise = rng.normal(0, 0.05, N)
    assert race(rng, bar, {"a": a + noise, "b": b}) == 1, "better than the best feasible one"
    assert race(rng, bar, {"a": a + 5, "b": b - 1 + noise}) < 1, "breaks the bound"


def test_pruned_failed_and_final_trials_are_no_rivals() -> None:
    rng = np.random.default_rng(9)
    row = rng.normal(0, 1, N)
    good = trial(0, a=row)
    better = trial(1, a=row + 1)
    told = [
        good,
        dataclasses.replace(better, state=TrialState.PRUNED),
        dataclasses.replace(better, state=TrialState.FAILED),
        dataclasses.replace(better, kind="final", split="select"),
    ]
    bar = Racing((A,), pareto=False).bar(told)
    assert bar.values.tolist() == [[good.scores.values["a"]]]
    assert race(rng, bar, {"a": row + 0.5}) == 1
