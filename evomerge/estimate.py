"""A candidate's full score from few documents, with the error that the estimate deserves.

The documents of a split are one Gaussian vector whose covariance the finished trials tell: merges
of the same models fail and succeed on the same documents. From the k documents that a candidate
has answered, its mean over all n is a conditional mean, and its error a conditional variance::

    v ~ N(mu, Sigma),   Sigma = g (S + L hh' + B mm') + (1 - g) s2 I

* mu (n,) is the mean of the T finished trials per document, S (n, n) their sample covariance, s2
  the mean variance of a document beside the shifts of whole trials. Shrinking S towards s2 I is
  Ledoit & Wolf (2004, "A well-conditioned estimator for large-dimensional covariance matrices");
  g, and h below, are those that predict the finished trials best, each left out in turn.
* L lets a candidate be better or worse on all documents than any trial before it, everywhere
  alike (h = 1) or where answers vary (h_i proportional to document i's standard deviation); B lets
  it answer as if documents differed more or less than they do on average (m = mu - mean(mu)). They
  matter while T is small: without them a candidate unlike the first trials is pulled towards them.
* The variance is scaled by the candidate's own residuals, before and after the fit, and by the
  leave-one-trial-out errors of the finished trials on the same documents, which only ever widen
  it. Twelve answers like those of an earlier trial are no proof that the other hundred are alike:
  one more document counts, on which they differ. The error is Student's, of T + 3 degrees of
  freedom.

docs/estimating.md compares it with item response theory, anchor points, regression and others;
:mod:`evomerge.racing` stops candidates by it (docs/racing.md).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from evomerge.errors import ConfigError

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

LATEST = 80
"""Trials that are used, the latest ones: more cost time (their number cubed) and add little."""
SHARES = (0.4, 0.7, 0.9, 0.98)
"""Values of g that are tried."""
_LEVEL, _LEVEL_TRIALS, _LEVEL_SHARE = 3.0, 3, 0.1
"""L is three times the variance of the trials' means, with three trials more that differ by a
tenth of the variance between documents: the first few trials may happen to be equally good."""
_SLOPE = 0.25
_PRIOR = 4
"""Residuals, and left-out trials, that the model's own variance counts as."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What is known of a mean over all documents.

    Attributes:
        mean: The estimate.
        stderr: Its standard error, >= 0: 0 when every document is known, NaN when nothing tells.
        freedom: Degrees of freedom of Student's distribution of the error, >= 1.
    """

    mean: float
    stderr: float
    freedom: float

    @property
    def half90(self) -> float:
        """``mean +- half90`` is meant to cover the truth 90% of the time."""
        from scipy.special import stdtrit

        return self.stderr * float(stdtrit(self.freedom, 0.95)) if self.stderr else 0.0


@dataclasses.dataclass(frozen=True)
class _Space:
    """What depends on h but not on g: r = T + 2 rows, the trials first, on the seen documents.

    Attributes:
        rows: (r, k) the rows.
        eigenvalues: (r,) of the rows' inner products.
        basis: (r, r) their eigenvectors.
        target: (r,) the rows' means over the unseen documents.
        noise: s2.
        trials: T.
        n_unseen: Documents not seen.
    """

    rows: Array
    eigenvalues: Array
    basis: Array
    target: Array
    noise: float
    trials: int
    n_unseen: int


@dataclasses.dataclass(frozen=True)
class _Fit:
    """The conditional mean of the unseen documents' mean, for one g and h.

    Attributes:
        space: What it was fitted in.
        weight: (r,) what the inner products of the rows with the residuals count.
        damping: (r,) eigenvalues of the precision of the residuals, in the basis of the rows.
        noise: (1 - g) s2.
        variance: Of the unseen documents' mean, by the model.
        left_out: (T,) errors of the finished trials, each predicted without itself.
        ratio: (T,) the same, squared, over the variance that the model gave them.
    """

    space: _Space
    weight: Array
    damping: Array
    noise: float
    variance: float
    left_out: Array
    ratio: Array


def estimate(history: npt.ArrayLike, values: npt.ArrayLike) -> Estimate:
    """Estimates the mean over all n documents from those that were asked.

    Args:
        history: (T, n) signed per-document values of finished trials, in the order of the search.
            Rows with anything but finite numbers (FAILED and PRUNED trials) do not count.
        values: (n,) values of a candidate, NaN where it was not asked. Any subset will do, as
            long as which documents were asked does not depend on the answers.

    Returns:
        The estimate. With fewer than two finished trials it is the mean of the seen documents, or
        of their differences from the only trial, with the error of a draw without replacement
        (NaN where these are all equal, or one).

    Raises:
        ConfigError: Shapes that do not fit.
    """
    rows, values = _checked(history, values)
    seen = np.isfinite(values)
    n, k = len(values), int(seen.sum())
    if k == n:
        return Estimate(float(values.mean()), 0.0, math.inf)
    if not _noise(rows) > 0:
        return _plain(rows, values, seen)
    spaces = [_space(rows, seen, shape) for shape in (np.ones(n), _variation(rows))]
    fits = [_fit(space, share) for space in spaces for share in SHARES]
    best = min(fits, key=lambda fit: float(fit.left_out @ fit.left_out))
    residuals = (values - rows.mean(axis=0))[seen]
    inner = best.space.basis.T @ (best.space.rows @ residuals)
    unseen = rows.mean(axis=0)[~seen].mean() + best.weight @ inner
    alike = float((values[seen] == rows[:, seen]).mean(axis=1).max()) if k else 0.0
    scale = _inflation(best, residuals, inner, alike * float(np.ptp(rows)) ** 2)
    stderr = (1 - k / n) * math.sqrt(best.variance * scale)
    mean = float((values[seen].sum() + (n - k) * unseen) / n)
    return Estimate(mean, stderr, len(rows) - 1 + _PRIOR)


def choose(history: npt.ArrayLike, k: int, rng: np.random.Generator) -> Indices:
    """Chooses documents that stand for all of them.

    Documents are points, a finished trial a coordinate. They are halved at the median along
    their leading principal component, the halves likewise, and so on; either half gets as many of
    the documents asked as its answers vary between trials (Neyman 1934, "On the two different
    aspects of the representative method"): a stratified sample with few documents that every trial
    answered alike, whose plain mean is biased; :func:`estimate` is not misled. Smaller k give the
    beginnings of what k = n gives from the same state of the generator.

    Args:
        history: (T, n), as in :func:`estimate`. Without a finished trial the choice is random.
        k: How many, 0 to n.
        rng: Source of what is left to chance.

    Returns:
        (k,) different indices, in the order in which to ask.

    Raises:
        ConfigError: Shapes that do not fit, or k out of range.
    """
    given = np.asarray(history, dtype=np.float64)
    rows, _ = _checked(given, np.zeros(given.shape[-1] if given.ndim else 0))
    n = rows.shape[1]
    if not 0 <= k <= n:
        raise ConfigError(f"choose: expected k between 0 and {n} documents, got {k}.")
    return _spread(rows.T, _variation(rows), rng.permutation(n), rng)[:k]


def _checked(history: npt.ArrayLike, values: npt.ArrayLike) -> tuple[Array, Array]:
    """The latest complete rows, and the values."""
    rows, found = np.asarray(history, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if rows.ndim != 2 or found.ndim != 1 or rows.shape[1] != len(found) or not len(found):
        raise ConfigError(
            f"expected a history of shape (T, n) and values of shape (n,) with n > 0, got "
            f"{rows.shape} and {found.shape}; without a finished trial the history is "
            "np.empty((0, n))."
        )
    return rows[np.isfinite(rows).all(axis=1)][-LATEST:], found


def _plain(rows: Array, values: Array, seen: npt.NDArray[np.bool_]) -> Estimate:
    """The mean of a simple random sample with the finite population's error (Cochran 1977).

    Of differences from the only trial, where there is one.
    """
    n, k = len(values), int(seen.sum())
    middle = rows.mean(axis=0) if len(rows) else np.zeros(n)
    if not k:
        return Estimate(float(middle.mean()) if len(rows) else math.nan, math.nan, 1.0)
    found, told = (values - middle)[seen], np.ptp((values - middle)[seen]) > 0
    stderr = float(found.std(ddof=1)) * math.sqrt((1 - k / n) / k) if told else math.nan
    return Estimate(float(middle.mean() + found.mean()), stderr, max(1.0, k - 1))


def _noise(rows: Array) -> float:
    """s2; 0 where nothing is known."""
    trials, n = rows.shape
    if trials < 2:
        return 0.0
    Z = rows - rows.mean(axis=0)
    square: float = ((Z - Z.mean(axis=1, keepdims=True)) ** 2).sum()
    # One residual more, of the size of documents' differences: agreement so far is no proof.
    noise = float((square + rows.mean(axis=0).var()) / (n * (trials - 1)))
    return noise if noise > 1e-12 * float((rows**2).max()) else 0.0  # else it is rounding


def _space(rows: Array, seen: npt.NDArray[np.bool_], shape: Array) -> _Space:
    """Rows R with S + L hh' + B mm' = R'R / (T - 1), h the shape scaled to a mean square of 1."""
    trials, n = rows.shape
    noise, mu = _noise(rows), rows.mean(axis=0)
    Z = rows - mu
    level = Z.mean(axis=1)
    between = float(mu.var()) + noise
    shift = _LEVEL * (float(level @ level) + _LEVEL_TRIALS * _LEVEL_SHARE * between)
    slope = math.sqrt(_SLOPE * (trials - 1)) * (mu - mu.mean())
    R = np.vstack([Z, slope, math.sqrt(shift / float((shape**2).mean())) * shape])
    X = R[:, seen]
    eigenvalues, basis = np.linalg.eigh(X @ X.T)
    target = R[:, ~seen].mean(axis=1)
    spectrum = np.maximum(eigenvalues, 0.0)
    return _Space(X, spectrum, basis, target, noise, trials, n - X.shape[1])


def _fit(space: _Space, share: float) -> _Fit:
    """Conditions on the seen documents (Woodbury), and on them without each trial in turn.

    Leaving a trial out takes T / (T - 1) z z' from the sum of squares Z'Z and moves the mean, so
    its error follows from the fit with it, as in ridge regression.
    """
    trials = space.trials
    a, s = share / (trials - 1), (1 - share) * space.noise
    precision = 1 / (s + a * space.eigenvalues)
    loading = space.basis.T @ space.target
    weight = a * precision * loading
    variance = s * (a * float(loading**2 @ precision) + 1 / space.n_unseen) * (1 + 1 / trials)
    grow = trials / (trials - 1)
    predicted = (space.basis @ (space.eigenvalues * weight))[:trials]
    reach = (space.basis**2 @ (space.eigenvalues * precision))[:trials]
    rest = np.maximum(1 - a * grow * reach, 1e-6)
    left_out = grow * (space.target[:trials] - predicted) / rest
    own = (_PRIOR + grow**2 * reach / rest / (1 + 1 / trials)) / (_PRIOR + space.rows.shape[1])
    ratio = left_out**2 / (variance * own)
    return _Fit(space, weight, a * precision, s, variance, left_out, ratio)


def _inflation(fit: _Fit, residuals: Array, inner: Array, doubt: float) -> float:
    """What the model's variance is multiplied with: the candidate's own scale, and the trials'.

    The own scale is the larger of two: of the residuals under Sigma, and of what the fit leaves of
    them as noise, on the degrees of freedom left (Hastie & Tibshirani 1990, section 3.5).
    ``inner``: the residuals' products with the rows, in the basis; ``doubt``: one square more.
    """
    trials, k, square = fit.space.trials, len(residuals), float(residuals @ residuals)
    used = fit.damping * fit.space.eigenvalues
    whole = max(0.0, square - float(fit.damping @ inner**2)) / fit.noise
    left = max(0.0, square - float((fit.damping * (2 - used)) @ inner**2)) / fit.noise
    whole = whole / (1 + 1 / trials) + doubt / fit.space.noise
    spare = max(0.0, k - float(used @ (2 - used)))
    own = max((_PRIOR + whole) / (_PRIOR + k), (_PRIOR + left) / (_PRIOR + spare))
    return own * max(1.0, (_PRIOR + float(fit.ratio.sum())) / (_PRIOR + trials))


def _variation(rows: Array) -> Array:
    """(n,) standard deviations over the trials, each with one average residual more."""
    trials, n = rows.shape
    Z = rows - rows.mean(axis=0) if trials else rows
    square = ((Z - Z.mean(axis=1, keepdims=True)) ** 2).sum(axis=0)
    average = square.mean() / max(1, trials - 1)
    return np.sqrt(square + average) if average > 0 else np.ones(n)


def _spread(points: Array, size: Array, order: Indices, rng: np.random.Generator) -> Indices:
    """Orders these points so that every beginning is spread over the tree of halves.

    Halves are merged by time: the j-th of a half comes at (j + u) / (the half's size).
    """
    if len(order) < 2:
        return order
    order = order[np.argsort(_along(points[order]), kind="stable")]
    cut = (len(order) + int(rng.integers(2))) // 2
    halves = [_spread(points, size, part, rng) for part in (order[:cut], order[cut:])]
    times = [(np.arange(len(h)) + rng.uniform()) / size[h].sum() for h in halves]
    merged: Indices = np.concatenate(halves)[np.argsort(np.concatenate(times), kind="stable")]
    return merged


def _along(points: Array) -> Array:
    """(n,) coordinates along the leading principal component, by a few power iterations."""
    Y = points - points.mean(axis=0)
    difficulty = Y.sum(axis=1)
    direction = Y.T @ difficulty
    if not direction.any():
        direction = Y[int((Y**2).sum(axis=1).argmax())] if Y.size else direction
    for _ in range(5):
        length = math.sqrt(float(direction @ direction))
        if length == 0:
            return np.zeros(len(Y))
        direction = Y.T @ (Y @ (direction / length))
    return np.asarray(Y @ direction)
