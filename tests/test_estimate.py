"""Full scores from few documents: exact where it must be, honest where it can only guess."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.errors import ConfigError
from evomerge.estimate import _fit, _space, choose, estimate


def answers(n_trials: int, n: int, seed: int, spread: float = 0.8) -> np.ndarray:
    """(n_trials, n) hits of a two-dimensional 2PL item-response model."""
    rng = np.random.default_rng(seed)
    ability = spread * rng.normal(size=(n_trials, 2))
    load = np.vstack([np.exp(0.4 * rng.normal(size=n)), rng.normal(size=n)])
    p = 1 / (1 + np.exp(1.5 * rng.normal(size=n) - ability @ load))
    return (rng.uniform(size=p.shape) < p).astype(float)


def merges(n_trials: int, n: int, seed: int, noise: float = 0.1) -> np.ndarray:
    """(n_trials, n) losses of candidates that differ in three coefficients."""
    rng = np.random.default_rng(seed)
    taus = rng.normal(size=(3, n)) + 0.5
    changes = rng.uniform(size=(n_trials, 3)) @ taus
    return rng.normal(size=n) * 2 + changes + noise * rng.normal(size=(n_trials, n))


def masked(row: np.ndarray, seen: np.ndarray) -> np.ndarray:
    values = np.full(len(row), np.nan)
    values[seen] = row[seen]
    return values


def outcomes(table: np.ndarray, trials: int, k: int, seed: int, chosen: bool = False):
    """(errors, errors of the plain mean, halves of 90% intervals) of the later candidates.

    Five candidates share a subset: a choice costs more than an estimate.
    """
    history, later = table[:trials], table[trials:]
    rng = np.random.default_rng(seed)
    found = []
    for i, row in enumerate(later):
        if i % 5 == 0:
            seen = choose(history, k, rng) if chosen else rng.permutation(table.shape[1])[:k]
        e = estimate(history, masked(row, seen))
        found.append((e.mean - row.mean(), row[seen].mean() - row.mean(), e.half90))
    return np.array(found).T


@pytest.mark.parametrize("chosen", [False, True])
@pytest.mark.parametrize("make", [answers, merges])
@pytest.mark.parametrize("trials", [3, 12, 40])
def test_intervals_cover_nine_of_ten(make, trials: int, chosen: bool) -> None:
    found = [outcomes(make(trials + 20, 150, s), trials, 30, s, chosen) for s in range(10)]
    error, _, half = np.hstack(found)
    covered = (np.abs(error) <= half).mean()
    assert 0.85 <= covered <= (1.0 if trials < 12 else 0.98), covered


def test_errors_are_far_below_the_plain_mean() -> None:
    error, plain, _ = outcomes(merges(80, 150, 0), 40, 15, 0)
    assert np.sqrt((error**2).mean()) < 0.2 * np.sqrt((plain**2).mean())
    error, plain, _ = np.hstack([outcomes(answers(80, 150, s), 40, 15, s) for s in range(3)])
    assert np.sqrt((error**2).mean()) < 0.9 * np.sqrt((plain**2).mean())


def test_choosing_ranks_better_than_chance() -> None:
    """Where most questions are solved by all candidates or by none."""

    def rank(chosen: bool) -> float:
        found = []
        for seed in range(5):
            rng = np.random.default_rng(seed)
            hits = merges(50, 150, seed) + 8 * rng.choice([-1, 1], 150) * (
                rng.uniform(size=150) < 0.7
            )
            table = (hits > 0.8).astype(float)
            error, _, _ = outcomes(table, 20, 15, 0, chosen)
            truth = table[20:].mean(axis=1)
            found.append(np.corrcoef(truth, truth + error)[0, 1])
        return float(np.mean(found))

    assert rank(True) > rank(False) + 0.02


@pytest.mark.parametrize("make", [answers, merges])
def test_more_documents_fewer_errors(make) -> None:
    table = make(70, 120, 3)
    found = [outcomes(table, 20, k, 0) for k in (6, 24, 80, 120)]
    errors = [float(np.sqrt((error**2).mean())) for error, _, _ in found]
    halves = [float(half.mean()) for _, _, half in found]
    assert errors == sorted(errors, reverse=True)
    assert halves == sorted(halves, reverse=True)


def test_all_documents_leave_nothing_to_guess() -> None:
    table = answers(12, 50, 0)
    e = estimate(table[:10], table[11])
    assert e.mean == table[11].mean()
    assert e.stderr == e.half90 == 0


def test_mean_and_left_out_errors_equal_the_dense_formulas() -> None:
    """The conditional mean of a 40-variate normal, and each trial predicted without itself."""
    rows = merges(8, 40, 1, noise=1.0)
    seen = np.arange(40) < 15
    shape = np.linspace(0.5, 2, 40)
    fit = _fit(_space(rows, seen, shape), 0.7)
    every = np.empty((10, 40))
    for part in (seen, ~seen):
        every[:, part] = _space(rows, part, shape).rows
    mu = rows.mean(axis=0)

    def dense(without: int | None, row: np.ndarray) -> float:
        square, centre = every.T @ every, mu
        if without is not None:
            z = every[without]
            square = square - 8 / 7 * np.outer(z, z)
            centre = np.delete(rows, without, axis=0).mean(axis=0)
        sigma = 0.7 / 7 * square + fit.noise * np.eye(40)
        gain = np.linalg.solve(sigma[np.ix_(seen, seen)], (row - centre)[seen])
        return float((centre[~seen] + sigma[np.ix_(~seen, seen)] @ gain).mean())

    row = merges(9, 40, 1, noise=1.0)[8]
    ours = mu[~seen].mean() + fit.weight @ fit.space.basis.T @ every[:, seen] @ (row - mu)[seen]
    assert ours == pytest.approx(dense(None, row), abs=1e-9)
    left_out = [rows[t][~seen].mean() - dense(t, rows[t]) for t in range(8)]
    np.testing.assert_allclose(fit.left_out, left_out, atol=1e-9)


def test_a_shift_or_another_unit_changes_nothing_else() -> None:
    table = merges(15, 60, 2)
    values = masked(table[14], np.arange(20))
    one, other = estimate(table[:14], values), estimate(-3 * table[:14] + 7, -3 * values + 7)
    assert other.mean == pytest.approx(-3 * one.mean + 7)
    assert other.stderr == pytest.approx(3 * one.stderr)


def test_without_history_it_is_the_plain_mean() -> None:
    values = masked(np.array([1.0, 0, 1, 1, 0, 0, 1, 0, 1, 0]), np.arange(5))
    for history in (np.empty((0, 10)), np.ones((1, 10)), np.full((3, 10), np.nan)):
        e = estimate(history, values)
        assert e.mean == 0.6
        assert e.stderr >= np.sqrt(0.3 / 5 * 0.5)


def test_a_candidate_unlike_the_first_trials_is_not_called_certain() -> None:
    """Four models that hardly solve a problem say little about those that do."""
    covered = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        history = (rng.uniform(size=(4, 200)) < 0.15).astype(float)
        row = (rng.uniform(size=200) < 0.6).astype(float)
        e = estimate(history, masked(row, rng.permutation(200)[:40]))
        covered.append(abs(e.mean - row.mean()) < e.half90)
    assert np.mean(covered) > 0.8


@pytest.mark.parametrize(
    ("history", "values"),
    [
        (np.empty((0, 4)), [np.nan] * 4),
        (np.empty((0, 4)), [1.0, np.nan, np.nan, np.nan]),
        (np.ones((5, 4)), [1.0, 1.0, np.nan, np.nan]),
        (np.ones((5, 4)), [0.0, 1.0, np.nan, np.nan]),
        (np.ones((5, 4)), [np.nan] * 4),
        (np.eye(4), [np.nan] * 4),
        (np.eye(4), [1.0, np.nan, np.nan, np.nan]),
        (np.tile([0.0, 1, 1, 0], (6, 1)), [0.0, 1, np.nan, np.nan]),
        (np.tile([0.0, 1, 1, 0], (6, 1)), [1.0, 0, np.nan, np.nan]),
        (np.full((2, 4), np.inf), [0.0, 1, np.nan, np.nan]),
        (np.zeros((1, 1)), [np.nan]),
    ],
)
def test_degenerate_input(history: np.ndarray, values: list[float]) -> None:
    e = estimate(history, values)
    assert np.isnan(e.stderr) or e.stderr > 0
    known = np.isfinite(values).any() or np.isfinite(history).any()
    assert np.isfinite(e.mean) == known


def test_equal_answers_are_no_proof_of_equal_scores() -> None:
    """Two models that differ on 2 of 100 documents, and one that answered 12 as the first did."""
    rng = np.random.default_rng(0)
    first = (rng.uniform(size=100) < 0.6).astype(float)
    second = first.copy()
    second[:2] = 1 - second[:2]
    seen = np.arange(50, 62)
    e = estimate([first, second, first], masked(first, seen))
    assert abs(e.mean - first.mean()) < 0.02
    assert e.half90 > 0.05


def test_failed_trials_do_not_count() -> None:
    table = answers(12, 40, 0)
    failed = np.vstack([table[:5], np.full(40, np.nan), table[5:10]])
    failed[5, :20] = 1.0
    values = masked(table[11], np.arange(10))
    assert estimate(failed, values) == estimate(table[:10], values)


@pytest.mark.parametrize("trials", [0, 1, 2, 30])
def test_choice_is_an_order_whose_beginnings_agree(trials: int) -> None:
    history = answers(trials, 41, 0)
    whole = choose(history, 41, np.random.default_rng(5))
    assert sorted(whole) == list(range(41))
    for k in (0, 1, 17):
        np.testing.assert_array_equal(choose(history, k, np.random.default_rng(5)), whole[:k])
    assert list(choose(history, 41, np.random.default_rng(6))) != list(whole)


def test_choice_is_stratified_and_asks_where_answers_vary() -> None:
    rng = np.random.default_rng(0)
    kinds = np.repeat([0, 1, 2], [100, 50, 50])  # always solved; solved by odd, by even trials
    history = np.stack([np.where(kinds == 0, 1, kinds == 1 + t % 2) for t in range(20)]) * 1.0
    chosen = kinds[choose(history, 40, rng)]
    counts = np.bincount(chosen, minlength=3)
    assert abs(counts[1] - counts[2]) <= 2
    assert 1 <= counts[0] < 20


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\(3, 4\) and \(5,\)"):
        estimate(np.zeros((3, 4)), np.zeros(5))
    with pytest.raises(ConfigError, match="history"):
        choose(np.zeros(4), 2, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="between 0 and 4"):
        choose(np.zeros((3, 4)), 5, np.random.default_rng(0))
