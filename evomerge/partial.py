"""A score on all documents, from some of them and from what earlier trials scored on all.

The difference from the earlier trial that a candidate resembles most, on the same documents; then
corrected by regression, since the earlier trials' differences from one another say which documents
move together, and what they come to on all n. That is the regression estimator of survey sampling
(Cochran 1977, "Sampling techniques", chapter 7), here with a ridge.

* What is to be known is the score on the n documents of the split, not on all documents of the
  world. So after k of n the variance of a mean has the factor 1 - k/n (Cochran, eq. 2.12).
* How much two candidates of this search differ from document to document is known from earlier
  ones. Twelve equal answers are no proof that the other hundred are equal: the variance on the
  documents seen is moderated towards that of earlier trials, as ``PRIOR`` more observations (Smyth
  2004, "Linear models and empirical Bayes methods", eq. 3.2).

Measured on recorded zoo searches (200 documents per task): docs/racing.md.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

PRIOR = 4.0
"""Observations that the variance of earlier trials' differences counts for."""
_FLOOR = 0.002
"""Least variance of a difference from document to document, in shares of one trial's own."""
_RIDGES = (3.0, 1.0, 0.3, 0.1)
"""Ridges of the regression, in shares of the mean square of its features."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A score on all documents, from some of them.

    Attributes:
        value: The estimate.
        variance: Of its error, >= 0.
        freedom: Degrees of freedom of that.
    """

    value: float
    variance: float
    freedom: float


def estimate(
    seen: npt.ArrayLike,
    rows: Array,
    values: Array,
    spread: Array,
    weights: Array | None = None,
) -> Estimate:
    """The score over n documents of a candidate that was asked k of them.

    Args:
        seen: (n,) scores of the candidate per document, NaN where not asked.
        rows: (H, n) scores of earlier trials.
        values: (H,) their scores over all documents.
        spread: (H,) variance from document to document of earlier differences.
        weights: (n,) of a weighted mean, of mean 1; None for equal ones.

    Returns:
        The estimate; variance 0 where all documents were asked.
    """
    a = np.asarray(seen, dtype=np.float64)
    known = np.isfinite(rows).all(axis=0)
    both = known & np.isfinite(a)
    n, k = int(known.sum()), int(both.sum())
    if k == 0:
        return Estimate(float(values[-1]), math.inf, PRIOR)
    w = np.ones(len(a)) if weights is None else np.asarray(weights, dtype=np.float64)
    ws = w[both] / w[both].mean()
    gaps = a[both] - rows[:, both]
    means = (ws * gaps).mean(axis=1)
    least = np.maximum(spread, _FLOOR * rows[:, known].var(axis=1))
    squares = ((ws * (gaps - means[:, None])) ** 2).sum(axis=1)
    base = int(np.argmin(PRIOR * least + squares))
    others = np.delete(rows[:, known] - rows[base, known], base, axis=0)
    within = both[known]
    change, ratio, extra = _regress(
        gaps[base] - means[base], others[:, within], others @ w[known] / w[known].sum(), ws
    )
    # Documents scored alike, as hits and misses are, hide how they can differ: one more that does.
    unseen = float((gaps[base] == 0).mean()) * float(np.ptp(rows[:, known])) ** 2
    variance = ((PRIOR * least[base] + squares[base]) * ratio + unseen) / (PRIOR + k - 1)
    share = (1 / k - 1 / n) + extra * (1 - k / n)
    return Estimate(float(values[base] + means[base] + change), variance * share, PRIOR + k - 1)


def _regress(d: Array, F: Array, full: Array, w: Array) -> tuple[float, float, float]:
    """What the documents not seen add to a difference.

    The ridge with the least leave-one-out error; no regression at all where none helps.

    Args:
        d: (k,) differences, of weighted mean 0.
        F: (p, k) differences of other trials on the same documents.
        full: (p,) their weighted means over all documents.
        w: (k,) weights, of mean 1.

    Returns:
        The correction of the mean; the share of the variance that is left by leave-one-out; and
        the variance of the correction, in units of the variance left.
    """
    k = len(d)
    total = float(((w * d) ** 2).sum())
    if k < 3 or not len(F) or total == 0:
        return 0.0, 1.0, 0.0
    middle = (F * w).mean(axis=1)
    X = ((F - middle[:, None]) * w).T
    reach = full - middle
    scale, Q = np.linalg.eigh(X @ X.T)
    scale = np.maximum(scale, 0.0)
    y = Q.T @ (w * d)
    best = (0.0, 1.0, 0.0)
    for ridge in _RIDGES:
        lam = ridge * float(scale.sum()) / k
        if lam <= 0:
            break
        shrunk = 1 / (scale + lam)
        alpha = Q @ (shrunk * y)
        diagonal = (Q**2) @ shrunk
        left = float(((alpha / diagonal) ** 2).sum()) / total  # leave-one-out residuals
        if left < best[1]:
            z = Q.T @ (X @ reach)
            spare = (float(reach @ reach) - float((z**2 * shrunk).sum())) / lam
            best = (float(reach @ (X.T @ alpha)), left, max(0.0, spare))
    return best
