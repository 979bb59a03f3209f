"""Task vectors (expert - base) in numbers: sizes, angles, and where their signs disagree."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from evomerge.experts import ExpertPool
from evomerge.gram import grams
from evomerge.groups import GroupSpec, PlacedGroup, build_groups

Array = npt.NDArray[np.float64]

_CHUNK = 1 << 18
_GROUPS = GroupSpec(blocks="each", roles="split", outside="split")


@dataclasses.dataclass(frozen=True, eq=False)
class Vectors:
    """K task vectors over G layer groups: one per layer and role, the rest by role.

    Attributes:
        names: The K experts.
        groups: The G groups, ordered by depth.
        products: (G, K + 1, K + 1) inner products of base (first) and experts.
        conflicts: (G,) entries that two experts move in opposite directions.
        contested: (G,) entries that at least two experts move at all.
        moved: (K,) entries that differ from the base's.
    """

    names: tuple[str, ...]
    groups: tuple[PlacedGroup, ...]
    products: Array
    conflicts: Array
    contested: Array
    moved: Array

    @functools.cached_property
    def grams(self) -> Array:
        """(G, K, K) inner products of the task vectors."""
        cross = self.products[:, 1:, :1]
        found: Array = (
            self.products[:, 1:, 1:] - cross - cross.transpose(0, 2, 1) + self.products[:, :1, :1]
        )
        return found

    @functools.cached_property
    def norms(self) -> Array:
        """(G, K) norms of the task vectors."""
        squares: Array = np.einsum("gkk->gk", self.grams)
        found: Array = np.sqrt(np.maximum(squares, 0.0))
        return found

    @functools.cached_property
    def relative(self) -> Array:
        """(G, K) norms of the task vectors by that of the base; NaN where the base is zero."""
        return _ratio(self.norms, np.sqrt(self.products[:, :1, 0]), np.nan)

    @functools.cached_property
    def overall(self) -> Array:
        """(K,) the same over all weights."""
        total: Array = np.sqrt((self.norms**2).sum(axis=0) / self.products[:, 0, 0].sum())
        return total

    @functools.cached_property
    def cosines(self) -> Array:
        """(K, K) cosines of the task vectors over all weights; 0 where one of them is zero."""
        gram = self.grams.sum(axis=0)
        norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
        return _ratio(gram, np.outer(norms, norms), 0.0)

    def likeness(self, *roles: str) -> Array:
        """(K,) cosine of expert and base over the groups of some roles; NaN without any."""
        kept = [g for g, group in enumerate(self.groups) if group.role in roles]
        p = self.products[kept].sum(axis=0)
        return _ratio(p[0, 1:], np.sqrt(p[0, 0] * np.diag(p)[1:]), np.nan)

    @functools.cached_property
    def conflict(self) -> Array:
        """(G,) share of the contested entries whose signs disagree; NaN where there are none."""
        return _ratio(self.conflicts, self.contested, np.nan)

    @property
    def overall_conflict(self) -> float:
        """The same over all weights."""
        total = self.contested.sum()
        return float(self.conflicts.sum() / total) if total else float("nan")


def task_vectors(pool: ExpertPool, progress: Callable[[str], None] | None = None) -> Vectors:
    """Measures the task vectors of a pool with a base, streaming.

    Two passes over the mapped files, chunk by chunk; a few MiB of memory per expert.

    Args:
        pool: A base and K experts.
        progress: Told the name of each layer group before it is read.
    """
    assert pool.base is not None  # noqa: S101 - the doctor always has one
    groups = build_groups(_GROUPS, pool.tensors, pool.n_layers)
    everyone = ExpertPool(None, (pool.base, *pool.experts), pool.tensors)
    products, counts = [], []
    moved = np.zeros(len(pool.experts))
    for group in groups:
        if progress:
            progress(group.group.name)
        products.append(grams(everyone, [group.group], task_vectors=False)[0])
        conflicts = contested = 0
        for name in group.group.tensors:
            a, b, m = _signs(pool, name)
            conflicts, contested, moved = conflicts + a, contested + b, moved + m
        counts.append((conflicts, contested))
    return Vectors(
        tuple(e.name for e in pool.experts),
        groups,
        np.array(products),
        np.array([a for a, _ in counts], dtype=np.float64),
        np.array([b for _, b in counts], dtype=np.float64),
        moved,
    )


def _ratio(a: Array, b: Array, otherwise: float) -> Array:
    """``a / b``, and ``otherwise`` where b is zero."""
    found = np.full(np.broadcast_shapes(a.shape, b.shape), otherwise)
    np.divide(a, b, out=found, where=b > 0)
    return found


def _signs(pool: ExpertPool, name: str) -> tuple[int, int, Array]:
    """Conflicting and contested entries of one tensor, and (K,) entries that each one moves."""
    base, experts = pool.sources(name)
    assert base is not None  # noqa: S101
    origin, flats = base.reshape(-1), [e.reshape(-1) for e in experts]
    conflicts = contested = 0
    moved = np.zeros(len(flats))
    for start in range(0, origin.numel(), _CHUNK):
        part = slice(start, start + _CHUNK)
        zero = origin[part]
        up = torch.zeros(zero.shape, dtype=torch.int8)
        down = torch.zeros_like(up)
        for k, flat in enumerate(flats):
            more, less = flat[part] > zero, flat[part] < zero
            up += more
            down += less
            moved[k] += int(more.sum()) + int(less.sum())
        conflicts += int(((up > 0) & (down > 0)).sum())
        contested += int(((up + down) > 1).sum())
    return conflicts, contested, moved
