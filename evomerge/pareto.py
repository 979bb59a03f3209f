"""Dominance, fronts, crowding, hypervolume and knee, thin over pymoo and moocore.

Everywhere ``F`` is a float matrix of shape (n, m): n points, m objectives, HIGHER IS BETTER. pymoo
minimises, so ``-F`` is what it sees. pymoo is imported inside the functions: it costs 0.3 s that
``evomerge --help`` need not pay.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from evomerge.errors import ConfigError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def dominates(a: npt.ArrayLike, b: npt.ArrayLike) -> bool:
    """Whether ``a`` is nowhere worse than ``b`` and somewhere better.

    Args:
        a: (m,) signed values.
        b: (m,) signed values.

    Raises:
        ConfigError: The shapes differ or are not (m,), or a value is not finite.
    """
    a = _vector(a, "a")
    b = _vector(b, "b", len(a))
    return bool((a >= b).all() and (a > b).any())


def non_dominated(F: npt.ArrayLike) -> Bools:
    """The Pareto front.

    Args:
        F: (n, m) signed values; n may be 0.

    Returns:
        (n,) mask of the points that no other dominates. Equal points do not dominate each other:
        all of them are kept.

    Raises:
        ConfigError: F is not (n, m), or not finite.
    """
    mask: Bools = ranks(F) == 0
    return mask


def ranks(F: npt.ArrayLike) -> Ints:
    """Non-domination ranks (Deb et al. 2002, section III-A).

    Args:
        F: (n, m) signed values; n may be 0.

    Returns:
        (n,) rank of each point: 0 on the Pareto front, 1 on the front once those are taken away,
        and so on. Equal points share a rank.

    Raises:
        ConfigError: F is not (n, m), or not finite.
    """
    F = _matrix(F)
    if not len(F):
        return np.zeros(0, dtype=np.int64)
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    _, rank = NonDominatedSorting().do(-F, return_rank=True)
    return np.asarray(rank, dtype=np.int64)


def fronts(F: npt.ArrayLike) -> list[Ints]:
    """The points grouped by :func:`ranks`.

    Args:
        F: (n, m) signed values; n may be 0.

    Returns:
        One array of ascending row indices per rank; together they hold every row once.

    Raises:
        ConfigError: F is not (n, m), or not finite.
    """
    rank = ranks(F)
    return [np.flatnonzero(rank == r).astype(np.int64) for r in range(rank.max(initial=-1) + 1)]


def crowding_distance(F: npt.ArrayLike) -> Floats:
    """How lonely each point of ONE front is (Deb et al. 2002, section III-B).

    Args:
        F: (n, m) signed values of the points of one front; n may be 0.

    Returns:
        (n,) mean over the objectives of the distance between a point's two neighbours, as a share
        of that objective's range. Infinite for the extreme points of every objective, and for
        all points where n <= 2. Constant objectives are left out; with nothing left, zeros.

    Raises:
        ConfigError: F is not (n, m), or not finite.
    """
    F = _matrix(F)
    if len(F) <= 2:
        return np.full(len(F), np.inf)
    from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance

    varies = np.ptp(F, axis=0) > 0  # a constant objective has no extremes and no neighbours
    if not varies.any():
        return np.zeros(len(F))
    return np.asarray(calc_crowding_distance(-F[:, varies]), dtype=np.float64)


def hypervolume(F: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """The volume that the points dominate, down to a reference point (Zitzler & Thiele 1999).

    Args:
        F: (n, m) signed values; dominated points and n = 0 are fine.
        reference: (m,) signed values, usually worse than every point; a point that is not better
            than it in every objective adds nothing.

    Returns:
        The volume, >= 0, in the product of the objectives' units.

    Raises:
        ConfigError: The shapes are not (n, m) and (m,), or a value is not finite.
    """
    F = _matrix(F)
    reference = _vector(reference, "reference", F.shape[1])
    better = F[(reference < F).all(axis=1)]
    if not len(better):
        return 0.0
    if F.shape[1] == 1:  # moocore wants two objectives or more
        return float(better.max() - reference[0])
    from pymoo.indicators.hv import HV

    return float(HV(ref_point=-reference).do(-better))


def knee(F: npt.ArrayLike) -> int:
    """The point where giving up a little of one objective stops buying much of another.

    Definition: each objective is scaled to [0, 1] over the Pareto front; the knee is the front
    point that lies furthest beyond the hyperplane through the m scaled single-objective optima,
    sum(f) = const on average (Das 1999, "On characterizing the 'knee' of the Pareto curve based
    on normal-boundary intersection"). Scaled that way, the normal of the hyperplane is taken as
    (1, ..., 1), so it is the front point with the largest sum of scaled values: exact for two
    objectives, and for more it needs no linear solve that a degenerate front could break.

    Args:
        F: (n, m) signed values, n >= 1; dominated points are never the knee.

    Returns:
        Row index of the knee. With one front point, that one; with two, the first in row order;
        constant objectives are left out; ties go to the point whose worst scaled objective is
        best, then to the first row.

    Raises:
        ConfigError: F is not (n, m), has no rows, or is not finite.
    """
    F = _matrix(F)
    if not len(F):
        raise ConfigError("knee: expected at least one point, got none; no trial is COMPLETE yet.")
    front = np.flatnonzero(non_dominated(F))
    P = F[front]
    low, span = P.min(axis=0), np.ptp(P, axis=0)
    varies = span > 0
    if not varies.any():
        return int(front[0])
    scaled = (P[:, varies] - low[varies]) / span[varies]
    # Rounded, so that ties are ties on every machine.
    total, worst = scaled.sum(axis=1).round(12), scaled.min(axis=1).round(12)
    order = np.lexsort((np.arange(len(front)), -worst, -total))
    return int(front[order[0]])


def _matrix(F: npt.ArrayLike) -> Floats:
    """F as (n, m) float64, or ConfigError."""
    array = _floats(F, "F", "(n points, m objectives)")
    if array.ndim != 2 or array.shape[1] < 1:
        raise ConfigError(
            f"F: expected shape (n points, m objectives) with m >= 1, got shape {array.shape}."
        )
    return _finite(array, "F")


def _vector(a: npt.ArrayLike, name: str, m: int | None = None) -> Floats:
    """``a`` as (m,) float64, or ConfigError."""
    shape = f"({'m' if m is None else m} objectives,)"
    array = _floats(a, name, shape)
    if array.ndim != 1 or not len(array) or (m is not None and len(array) != m):
        raise ConfigError(f"{name}: expected shape {shape}, got shape {array.shape}.")
    return _finite(array, name)


def _floats(a: npt.ArrayLike, name: str, shape: str) -> Floats:
    """``a`` as float64, or ConfigError."""
    try:
        return np.asarray(a, dtype=np.float64)
    except (TypeError, ValueError) as e:
        raise ConfigError(f"{name}: expected numbers of shape {shape}, got {a!r}.") from e


def _finite(array: Floats, name: str) -> Floats:
    """``array`` itself, or ConfigError."""
    if not np.isfinite(array).all():
        where = np.argwhere(~np.isfinite(array))[0].tolist()
        raise ConfigError(
            f"{name}: expected finite values, got {array[tuple(where)]} at {where}; leave out "
            "FAILED trials."
        )
    return array
