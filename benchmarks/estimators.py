"""Ways to guess a full score from few documents, beside the project's own.

An estimator takes the (T, n) history, the (n,) mask of seen documents and the (c, n) values of c
candidates (NaN where not seen), and returns (c,) estimates and (c,) standard errors for a normal
90% interval. A chooser takes the history, k and a generator, and returns k documents.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.cluster.vq import kmeans2
from scipy.optimize import minimize
from scipy.special import expit, stdtrit

from evomerge.estimate import choose, estimate

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Estimator = Callable[[Array, Mask, Array], tuple[Array, Array]]
Chooser = Callable[[Array, int, np.random.Generator], npt.NDArray[np.int64]]


def at_random(history: Array, k: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    return rng.permutation(history.shape[1])[:k]


def subset_mean(history: Array, seen: Mask, values: Array) -> tuple[Array, Array]:
    """The mean of what was seen, with the finite population's error."""
    del history
    return values[:, seen].mean(axis=1), _drawn(values[:, seen], len(seen))


def paired_best(history: Array, seen: Mask, values: Array) -> tuple[Array, Array]:
    """The best earlier trial's full score, plus the mean difference from it."""
    best = history[history.mean(axis=1).argmax()]
    difference = values[:, seen] - best[seen]
    return best.mean() + difference.mean(axis=1), _drawn(difference, len(seen))


def paired_mean(history: Array, seen: Mask, values: Array) -> tuple[Array, Array]:
    """The same against the mean of all earlier trials."""
    return paired_best(history.mean(axis=0)[None], seen, values)


def regression(history: Array, seen: Mask, values: Array) -> tuple[Array, Array]:
    """Ridge regression over documents on the earlier trials' answers, corrected by its residuals.

    AIPW of arXiv:2506.07673, with its ridge of 10; error from leave-one-document-out residuals.
    """
    n, k = len(seen), int(seen.sum())
    X = history.T - history.T[seen].mean(axis=0)
    y = values[:, seen] - values[:, seen].mean(axis=1, keepdims=True)
    K = X[seen] @ X[seen].T
    inverse = np.linalg.inv(K + 10 * np.eye(k))
    slope = y @ inverse @ X[seen]
    shift = slope @ X[~seen].mean(axis=0) - slope @ X[seen].mean(axis=0)
    left_out = (y - slope @ X[seen].T) / (1 - np.diag(K @ inverse) - 1 / k).clip(0.05)
    error = np.sqrt((left_out**2).mean(axis=1) / k * (1 - k / n))
    return values[:, seen].mean(axis=1) + (1 - k / n) * shift, error


def conditioning(history: Array, seen: Mask, values: Array) -> tuple[Array, Array]:
    """`evomerge.estimate`."""
    del seen
    found = [estimate(history, row) for row in values]
    return np.array([e.mean for e in found]), np.array([e.half90 for e in found]) / 1.6449


def anchors(history: Array, k: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """The documents nearest to the centres of k clusters (Vivek et al. 2024, arXiv:2309.08638)."""
    points = history.T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # clusters that end up empty
        centres, labels = kmeans2(points, k, minit="++", seed=rng)
    found = []
    for j in range(k):
        members = np.flatnonzero(labels == j)
        if len(members):
            found.append(members[((points[members] - centres[j]) ** 2).sum(axis=1).argmin()])
    rest = np.setdiff1d(rng.permutation(len(points)), found)
    return np.array([*found, *rng.permutation(rest)[: k - len(found)]])


def anchor_weights(history: Array, seen: Mask, values: Array) -> tuple[Array, Array]:
    """Every document counts for the nearest anchor; error from the earlier trials' own errors."""
    chosen = np.flatnonzero(seen)
    distance = (history**2).sum(axis=0)[:, None] + (history[:, chosen] ** 2).sum(axis=0)
    distance = distance - 2 * history.T @ history[:, chosen]
    weights = np.bincount(distance.argmin(axis=1), minlength=len(chosen)) / len(seen)
    misses = history[:, chosen] @ weights - history.mean(axis=1)
    error = np.sqrt((misses**2).mean()) * _widened(len(history))
    return values[:, chosen] @ weights, np.full(len(values), error)


def greedy(history: Array, k: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """One document after the other, each the one that leaves the least variance of the mean.

    The covariance is that of `evomerge.estimate` with g = 0.7.
    """
    del rng
    trials, n = history.shape
    deviations = history - history.mean(axis=0)
    noise = 0.3 * (deviations**2).sum() / (trials - 1) / n
    rows = deviations * np.sqrt(0.7 / (trials - 1))
    rows = np.vstack([rows, np.full(n, np.sqrt(0.7) * history.mean(axis=1).std(ddof=1))])
    link = rows.T @ rows.mean(axis=1) + noise / n
    variance = (rows**2).sum(axis=0) + noise
    factor, found = np.zeros((n, k)), []
    for j in range(k):
        gain = link**2 / variance
        gain[found] = -1
        i = int(gain.argmax())
        column = rows.T @ rows[:, i] - factor[:, :j] @ factor[i, :j]
        column[i] += noise
        factor[:, j] = column / np.sqrt(column[i])
        link = link - factor[:, j] * link[i] / factor[i, j]
        variance = np.maximum(variance - factor[:, j] ** 2, 1e-12)
        found.append(i)
    return np.array(found)


def rasch(history: Array, seen: Mask, values: Array) -> tuple[Array, Array]:
    """p-IRT (arXiv:2402.14992) with one discrimination for all documents."""
    return _predicted(_items(history.tobytes(), history.shape, free=False), seen, values)


def two_parameter(history: Array, seen: Mask, values: Array) -> tuple[Array, Array]:
    """p-IRT with a discrimination for every document (2PL)."""
    return _predicted(_items(history.tobytes(), history.shape, free=True), seen, values)


def blended(history: Array, seen: Mask, values: Array) -> tuple[Array, Array]:
    """gp-IRT: p-IRT and the subset mean, weighted by p-IRT's misses on a fifth of the trials."""
    cut = len(history) - max(2, len(history) // 5)
    held = np.where(seen, history[cut:], np.nan)
    trial, _ = two_parameter(np.ascontiguousarray(history[:cut]), seen, held)
    bias = ((trial - history[cut:].mean(axis=1)) ** 2).mean()
    plain, spread = subset_mean(history, seen, values)
    model, error = two_parameter(history, seen, values)
    share = bias / (bias + (spread**2).mean())
    return share * plain + (1 - share) * model, share * spread + (1 - share) * error


def _drawn(seen: Array, n: int) -> Array:
    """Standard error of (c, k) values drawn from n without replacement, for a normal interval."""
    k = seen.shape[1]
    error: Array = seen.std(axis=1, ddof=1) * np.sqrt((1 - k / n) / k) * _widened(k - 1)
    return error


def _widened(dof: int) -> float:
    return float(stdtrit(dof, 0.95) / stdtrit(1e9, 0.95))


@functools.lru_cache(maxsize=64)
def _items(raw: bytes, shape: tuple[int, int], *, free: bool) -> tuple[Array, Array]:
    """(n,) discriminations and difficulties: the joint mode with weak priors."""
    answers = np.frombuffer(raw).reshape(shape)
    trials, n = shape

    def loss(x: Array) -> tuple[float, Array]:
        ability, difficulty, log_a = x[:trials], x[trials : trials + n], x[trials + n :]
        a = np.exp(log_a if free else np.full(n, log_a[0]))
        z = np.outer(ability, a) - difficulty
        wrong = expit(z) - answers
        value = (np.logaddexp(0, z) - answers * z).sum()
        prior = (ability**2).sum() + (difficulty**2).sum() / 9 + (log_a**2).sum() / 0.25
        slope = a * (wrong * ability[:, None]).sum(axis=0)
        gradient = np.concatenate(
            [wrong @ a, -wrong.sum(axis=0), slope if free else [slope.sum()]]
        )
        scale = np.concatenate([ability, difficulty / 9, log_a / 0.25])
        return value + prior / 2, gradient + scale

    start = np.zeros(trials + n + (n if free else 1))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    log_a = found[trials + n :]
    return np.exp(log_a if free else np.full(n, log_a[0])), found[trials : trials + n]


def _predicted(items: tuple[Array, Array], seen: Mask, values: Array) -> tuple[Array, Array]:
    """p-IRT: what was seen, and for the rest its expectation over the posterior of the ability."""
    a, difficulty = items
    grid = np.linspace(-6, 6, 121)
    z = np.outer(grid, a) - difficulty
    likelihood = values[:, seen] @ z[:, seen].T - np.logaddexp(0, z[:, seen]).sum(axis=1)
    posterior = np.exp(likelihood - grid**2 / 2 - (likelihood - grid**2 / 2).max(1, keepdims=True))
    posterior /= posterior.sum(axis=1, keepdims=True)
    p = expit(z[:, ~seen])
    level = p.mean(axis=1)
    mean = posterior @ level
    variance = posterior @ level**2 - mean**2
    variance += posterior @ (p * (1 - p)).sum(axis=1) / p.shape[1] ** 2
    share = 1 - seen.mean()
    return seen.mean() * values[:, seen].mean(axis=1) + share * mean, share * np.sqrt(variance)


METHODS: dict[str, tuple[Chooser, Estimator, bool]] = {
    "subset mean": (at_random, subset_mean, False),
    "paired with the best trial": (at_random, paired_best, False),
    "paired with the mean trial": (at_random, paired_mean, False),
    "regression (AIPW)": (at_random, regression, False),
    "Rasch p-IRT": (at_random, rasch, True),
    "2PL p-IRT": (at_random, two_parameter, True),
    "2PL gp-IRT": (at_random, blended, True),
    "conditioning": (at_random, conditioning, False),
    "anchor points": (anchors, anchor_weights, False),
    "anchor points, conditioning": (anchors, conditioning, False),
    "greedy, conditioning": (greedy, conditioning, False),
    "chosen, conditioning": (choose, conditioning, False),
}
"""Name to (chooser, estimator, whether it is for hits and misses only)."""
