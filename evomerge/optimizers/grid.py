"""Grid search in one to three dimensions: a yardstick, and a picture of the landscape.

In more dimensions a grid is hopeless, and refused: Bergstra & Bengio (2012), "Random search for
hyper-parameter optimization", JMLR 13.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from evomerge.errors import ConfigError
from evomerge.optimizers.base import Problem, check_integer, counts, rng_for
from evomerge.recipe import Vector
from evomerge.trial import Trial

_DIGITS = 9
"""Points that agree to so many decimals are the same."""


class Grid:
    """Every point of a grid, in an order shuffled by the seed; no point twice.

    A trial gets the first point in that order that was neither told nor is pending, be it as a
    reference point or as a trial that FAILED.

    Args:
        problem: Its dimension and seed; nothing else is looked at.
        points_per_axis: N >= 2 evenly spaced values per axis, the bounds included: N^d points, and
            then :meth:`ask` returns no more. None: nested grids for ever, of 2, 3, 5, 9, ...
            values per axis, each finished (but for what the coarser ones hold) before the next.

    Attributes:
        max_dim: 3.

    Raises:
        ConfigError: More than 3 dimensions, or a setting that does not make sense.
    """

    pareto = False
    max_dim = 3

    def __init__(self, problem: Problem, *, points_per_axis: int | None = None) -> None:
        if problem.dim > self.max_dim:
            raise ConfigError(
                f"grid: expected a space of at most {self.max_dim} dimensions, got {problem.dim}; "
                "take optimizer=sobol, which covers any number of them evenly, or a search."
            )
        if points_per_axis is not None:
            check_integer("points_per_axis", points_per_axis, 2)
        self._dim, self._seed, self._per_axis = problem.dim, problem.seed, points_per_axis
        self._told: set[tuple[float, ...]] = set()
        self._rest = self._points()
        self._made: list[Vector] = []  # the beginning of the order
        self._n_told = 0  # so many of its first points are told

    def ask(self, n: int, first: int, pending: Sequence[Trial] = ()) -> list[Vector]:
        """Proposes ``n`` points of shape (d,); fewer, then none, at the end of a finite grid."""
        del first
        taken = self._told | {_key(t.x) for t in pending if counts(t) and t.x is not None}
        free = (x.copy() for x in self._from(self._n_told) if _key(x) not in taken)
        return list(itertools.islice(free, n))

    def tell(self, trials: Sequence[Trial]) -> None:
        """Notes which points are done, and learns nothing from their scores."""
        self._told |= {_key(t.x) for t in trials if counts(t) and t.x is not None}
        for x in self._from(self._n_told):
            if _key(x) not in self._told:
                break
            self._n_told += 1

    def _from(self, index: int) -> Iterator[Vector]:
        """The points of shape (d,) from ``index`` on; each is made once."""
        while True:
            if index == len(self._made):
                x = next(self._rest, None)
                if x is None:
                    return
                self._made.append(x)
            yield self._made[index]
            index += 1

    def _points(self) -> Iterator[Vector]:
        """All points, in order."""
        if self._per_axis is not None:
            yield from self._shuffled(self._per_axis, 0)
            return
        for level in itertools.count():
            for x in self._shuffled(2**level + 1, level):
                # The coarser grids hold the points whose coordinates are all even here.
                if level == 0 or (x * 2**level % 2 != 0).any():
                    yield x

    def _shuffled(self, per_axis: int, level: int) -> Iterator[Vector]:
        """All points of one grid, so that a budget that ends within it still covers the box."""
        order = rng_for(self._seed, level).permutation(per_axis**self._dim)
        shape = (per_axis,) * self._dim
        for index in order:
            yield np.array(np.unravel_index(index, shape), dtype=np.float64) / (per_axis - 1)


def _key(x: Vector) -> tuple[float, ...]:
    return tuple(np.round(np.asarray(x, dtype=np.float64), _DIGITS).tolist())
