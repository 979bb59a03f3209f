"""Niches: an archive whose members compete for documents, and how two of them are crossed.

Abrantes, Lange & Tang (2025), "Competition and Attraction Improve Model Fusion"
(arXiv:2508.16204), M2N2. The archive knows documents, not models: its members may be flat
weight vectors or coefficient matrices, which :func:`cross` cuts along their first axis.

With s_ij >= 0 the score of member i on document j, and c_j the best that can be scored there:

* shares: ``F_ij = s_ij (c_j / z_j)^alpha`` with ``z_j = sum_k s_kj``: a document that many solve
  gives little to each of them. alpha = 1 is the paper's ``c_j s_ij / z_j``; c = 1, for hits and
  misses, is the official code; alpha = 0 is the plain sum of a genetic algorithm. Graded scores
  with c = 1 compete for documents that nobody solves yet, too: from scratch, probabilities learn
  what hits and misses leave out (``benchmarks/m2n2_digits.py``).
* fitness: ``f_i = sum_j F_ij``, the chance to be the first parent; the lowest one leaves.
* attraction of A to i: ``g_i = sum_j max(0, F_ij - F_Aj)``: what i can that A cannot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

M = TypeVar("M")
Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Resources = Callable[[Array], tuple[Array, Array | float]]
"""(n, N) rows as they were told -> (n, N) scores s >= 0 and (N,) capacities c >= 0."""

_PARALLEL = 1e-6
"""Below this sine of the angle two vectors count as parallel: lerp (as the official code)."""


def as_told(rows: Array) -> tuple[Array, float]:
    """Resources of rows that are scores already: hits or probabilities, a document gives 1."""
    return rows, 1.0


class Archive(Generic[M]):
    """At most ``size`` members, in a steady state: one enters, the least fit one leaves.

    Args:
        size: Most members, >= 2.
        alpha: Strength of the competition, >= 0.
        resources: Makes scores and capacities of told rows, anew whenever a member enters.

    Attributes:
        members: n of them, whatever they are.
        fitness: (n,) f.
        shares: (n, N) F.
    """

    def __init__(self, size: int, alpha: float = 1.0, resources: Resources = as_told) -> None:
        self.size, self.alpha = size, alpha
        self._resources = resources
        self.members: list[M] = []
        self._rows: Array = np.zeros((0, 0))
        self.shares: Array = np.zeros((0, 0))
        self.fitness: Floats = np.zeros(0)

    def __len__(self) -> int:
        return len(self.members)

    @property
    def rows(self) -> Array:
        """(n, N) rows of the members as they were told."""
        return self._rows[: len(self.members)]

    def add(self, member: M, row: Array) -> bool:
        """Lets one member compete.

        Args:
            member: What it is.
            row: (N,) its documents; the first member's N and dtype hold for all.

        Returns:
            Whether it stayed. Of members with equal fitness the oldest leaves (official code),
            so that neutral changes can drift.
        """
        n = len(self.members)
        if n == 0:
            self._rows = np.zeros((self.size + 1, len(row)), dtype=row.dtype)
        self._rows[n] = row
        before = self.shares, self.fitness
        self._compete(n + 1)
        if n < self.size:
            self.members.append(member)
            return True
        leaves = int(np.argmin(self.fitness))
        if leaves == n:
            self.shares, self.fitness = before
            return False
        self.members[leaves] = member
        self._rows[leaves] = row
        self._compete(n)
        return True

    def _compete(self, n: int) -> None:
        self.shares = shares(*self._resources(self._rows[:n]), alpha=self.alpha)
        self.fitness = self.shares.sum(axis=1, dtype=np.float64)

    def parents(self, rng: np.random.Generator, *, attraction: bool = True) -> tuple[int, int]:
        """Draws two parents.

        Args:
            rng: Source of the draw.
            attraction: Whether the second one is drawn by its attraction, else by fitness (the
                first one again, perhaps).

        Returns:
            Their indices. Where nobody can what the first cannot, fitness decides.
        """
        first = draw(self.fitness, rng)
        wanted = attract(self.shares, first) if attraction else self.fitness
        return first, draw(wanted if wanted.sum() > 0 else self.fitness, rng)


def shares(scores: Array, capacity: Array | float = 1.0, *, alpha: float = 1.0) -> Array:
    """What each member gets of each document.

    Args:
        scores: (n, N) s >= 0.
        capacity: (N,) c, or one number for all.
        alpha: Strength of the competition, >= 0.

    Returns:
        (n, N) F; a document that nobody solves gives nothing.
    """
    if alpha == 0:
        return scores
    crowd = scores.sum(axis=0)
    crowd[crowd == 0] = 1
    worth = capacity / crowd
    return np.asarray(scores * (worth if alpha == 1 else worth**alpha))


def attract(shares: Array, first: int) -> Floats:
    """(n,) g of all members for the ``first`` parent; 0 for itself and for its likes."""
    more = shares - shares[first]
    np.maximum(more, 0, out=more)
    found: Floats = more.sum(axis=1, dtype=np.float64)
    return found


def draw(weights: Floats, rng: np.random.Generator) -> int:
    """An index with probability proportional to its weight >= 0; uniform where all are 0."""
    ends = np.cumsum(weights)
    if not ends[-1] > 0:
        return int(rng.integers(len(weights)))
    at = int(np.searchsorted(ends, rng.random() * ends[-1], side="right"))
    return min(at, int(np.flatnonzero(weights)[-1]))  # rounding can lead past the last one


def draw_cut(sizes: Floats | int, rng: np.random.Generator) -> int:
    """Where the first axis is cut, uniformly over the flat parameter index.

    Args:
        sizes: (G,) parameters per entry of the first axis, or the number of entries where each
            is one parameter.
        rng: Source of the draw.

    Returns:
        The entry, in 0 ... G - 1, that the drawn parameter is in: entry g with a probability
        proportional to its size. At 0 nothing is cut off.
    """
    if isinstance(sizes, int):
        return int(rng.integers(sizes))
    return draw(sizes, rng)


def blend(t: float, angle: float) -> tuple[float, float]:
    """(a, b) of ``a A + b B``, a share ``t`` of the way from A to B along their ``angle``.

    Slerp (Shoemake 1985); lerp where the angle is 0 or pi.
    """
    sine = float(np.sin(angle))
    if sine <= _PARALLEL:
        return 1.0 - t, t
    return float(np.sin((1 - t) * angle)) / sine, float(np.sin(t * angle)) / sine


def cross(a: Array, b: Array, cut: int, t: float, angle: float = 0.0) -> Array:
    """The child of two members: share ``t`` of B before the cut, ``1 - t`` from it on.

    Args:
        a: First parent; the first axis is cut.
        b: Second parent, of the same shape.
        cut: First entry of the second part, in [0, len].
        t: Share of B, in [0, 1].
        angle: Between the parents, over all weights; 0 for lerp.

    Returns:
        The child. As it is ``a' A + b' B`` in either part, it is exact for coefficients just as
        for the weights that they stand for.
    """
    child = np.empty_like(a)
    for part, share in ((slice(None, cut), t), (slice(cut, None), 1 - t)):
        left, right = blend(share, angle)
        child[part] = left * a[part] + right * b[part]
    return child


def angle_between(a: Array, b: Array) -> float:
    """Angle in [0, pi] between two flat vectors; 0 where one of them is 0."""
    norms = float(np.sqrt(float(a @ a) * float(b @ b)))
    if norms == 0:
        return 0.0
    return float(np.arccos(np.clip(float(a @ b) / norms, -1.0, 1.0)))
