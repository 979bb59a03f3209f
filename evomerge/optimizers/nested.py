"""Nested MAP: many experts, two at a time.

Li et al. (2024), arXiv:2406.07529, section 4: a surrogate over N experts needs a sample that grows
with N^2, a surrogate over two does not. Experts are paired with the one whose score is closest, as
there; each pair is fitted in its own plane and becomes one node, a fixed mixture of its members;
nodes are paired again until one is left. That costs N + 1 + (N - 1) n_pair trials, and what it
found is the sample that the surrogates over the whole space start from: the last mixture's ratios
are not frozen, as they are in the paper.

The paper does not measure the base. It lies in every pair's plane: one trial tells all of them how
good small weights are. Without it, on six digit experts whose best merges are close to it, two
searches of five ended among mixtures that know nothing of some digits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from evomerge.errors import ConfigError
from evomerge.optimizers import surrogate
from evomerge.optimizers.base import Problem, Yardstick
from evomerge.optimizers.design import SobolSequence
from evomerge.recipe import Matrix, Vector
from evomerge.trial import Trial

_GRID = 33
"""Steps per side of the plane in which a pair's best mixture is sought."""
_EXACT = 1e-9


@dataclasses.dataclass(frozen=True, eq=False)
class Experts:
    """Which axes belong to which expert.

    Attributes:
        absent: (d,) the point of [0, 1]^d where no expert takes part.
        alone: K points (d,), each with one expert at full weight and no other.
        axes: (K, d) which axes move which expert; no axis moves two.
    """

    absent: Vector
    alone: tuple[Vector, ...]
    axes: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, problem: Problem) -> Experts | None:
        """Reads them off the geometry; without one, every axis counts as one expert's weight.

        Args:
            problem: Its ``geometry`` tells where a coefficient is 0 and 1; without one, 0 and 1
                stand at the ends of an axis.

        Returns:
            The experts, or None where an axis moves two of them.
        """
        d, geometry = problem.dim, problem.geometry
        absent, full, axes = np.zeros(d), np.ones(d), np.eye(d, dtype=bool)
        if geometry is not None:
            axes = (geometry.matrix.reshape(*geometry.shape, d) != 0).any(axis=0)
            axes = axes[axes.any(axis=1)]
            if (axes.sum(axis=0) > 1).any():
                return None
            span = geometry.high - geometry.low
            absent = np.clip(-geometry.low / span, 0.0, 1.0)
            full = np.clip((1.0 - geometry.low) / span, 0.0, 1.0)
        alone = tuple(np.where(own, full, absent) for own in axes)
        return cls(absent, alone, axes)


@dataclasses.dataclass(frozen=True, eq=False)
class _Node:
    """A mixture of some experts: ``absent + s * offset``, s in [0, 1], the others absent.

    Attributes:
        offset: (d,) reaches the border of the box at s = 1.
        best: The s of the mixture that was chosen, in (0, 1].
    """

    offset: Vector
    best: float

    @classmethod
    def through(cls, absent: Vector, offset: Vector) -> _Node:
        """The node whose chosen mixture is ``absent + offset``; the offset is not all zero."""
        room = np.where(offset > 0, 1.0 - absent, absent)
        moves = np.abs(offset) > _EXACT
        stretch = float((room[moves] / np.abs(offset[moves])).min(initial=np.inf))
        if not 1.0 <= stretch < np.inf:
            stretch = 1.0
        return cls(offset * stretch, 1.0 / stretch)


class Tournament:
    """The pairs of one round after another, as a fold.

    Args:
        experts: Whose axes are whose; two experts at least.
        problem: Its objectives and seed.
        n_pair: Trials per pair.

    Attributes:
        is_over: Whether one node is left.

    Raises:
        ConfigError: Fewer than two experts.
    """

    def __init__(self, experts: Experts, problem: Problem, n_pair: int) -> None:
        if len(experts.alone) < 2:
            raise ConfigError(
                "variant: 'nested' pairs experts, and needs two or more of them; this space has "
                f"{len(experts.alone)}. Use 'plain' or 'bayesian'."
            )
        self.is_over = False
        self._objectives = problem.objectives
        self._absent, self._n_pair = experts.absent, n_pair
        self._first = (experts.absent, *experts.alone)
        self._nodes = [_Node.through(self._absent, x - self._absent) for x in experts.alone]
        self._pairs: list[tuple[_Node, _Node]] = []
        self._ends_at = len(self._first)
        self._sobol = SobolSequence(2, problem.seed, max(16, n_pair))

    def points(self) -> Iterator[Vector]:
        """Points (d,) of the open round: the base and each expert alone, then pairs', for ever."""
        if not self._pairs:
            yield from (x.copy() for x in self._first)
            return
        known = [
            [(a.best, 0.0), (0.0, b.best), (a.best, b.best)] for a, b in self._pairs
        ]  # a chosen mixture is a prediction: it is measured, too
        k = 0
        while True:
            for (a, b), first in zip(self._pairs, known, strict=True):
                s, t = first[k] if k < len(first) else self._sobol[k - len(first)]
                yield np.clip(self._absent + s * a.offset + t * b.offset, 0.0, 1.0)
            k += 1

    def advance(
        self,
        n_searched: int,
        trials: Sequence[Trial],
        yardstick: Yardstick,
    ) -> None:
        """Closes the open round once it had its trials, whichever they were.

        The first one also ends when reference points have measured all of its points.

        Args:
            n_searched: Search trials told so far.
            trials: All scored trials with an x.
            yardstick: Reads them.
        """
        measured = not self._pairs and self._is_measured(trials)
        if n_searched < self._ends_at and not measured:
            return
        if self._pairs:
            paired = {id(n) for pair in self._pairs for n in pair}
            kept = [n for n in self._nodes if id(n) not in paired]
            merged = [self._merge(a, b, trials, yardstick) for a, b in self._pairs]
            self._nodes = [*merged, *kept]
        self._pairs = []
        if len(self._nodes) == 1:
            self.is_over = True
            return
        scores = [self._score(node, trials, yardstick) for node in self._nodes]
        order = np.argsort(scores, kind="stable")
        # Of an odd number the best one waits: it has the least to gain from the weakest.
        self._pairs = [
            (self._nodes[order[i]], self._nodes[order[i + 1]]) for i in range(0, len(order) - 1, 2)
        ]
        self._ends_at = n_searched + self._n_pair * len(self._pairs)

    def _is_measured(self, trials: Sequence[Trial]) -> bool:
        """Whether the base and each expert alone are among the trials."""
        X = np.array([t.x for t in trials], dtype=np.float64).reshape(-1, len(self._absent))
        return all((np.abs(X - x) <= _EXACT).all(axis=1).any() for x in self._first)

    def _score(self, node: _Node, trials: Sequence[Trial], yardstick: Yardstick) -> float:
        """Score of the trial on a node's line nearest to its mixture; -inf where there is none."""
        on_line = self._on_plane(node, None, trials)
        if not on_line:
            return -np.inf
        nearest = min(on_line, key=lambda found: abs(found[1][0] - node.best))[0]
        return -yardstick.key(nearest)[1]

    def _on_plane(
        self, a: _Node, b: _Node | None, trials: Sequence[Trial]
    ) -> list[tuple[Trial, tuple[float, float]]]:
        """The trials in the plane of two nodes, and where in it."""
        zero = np.zeros_like(self._absent)
        plane = np.column_stack([a.offset, zero if b is None else b.offset])
        X = np.array([t.x for t in trials], dtype=np.float64).reshape(-1, len(zero)) - self._absent
        places = X @ np.linalg.pinv(plane).T
        off = np.abs(X - places @ plane.T).max(axis=1, initial=0.0)
        return [
            (t, (float(s), float(u)))
            for t, (s, u), distance in zip(trials, places, off, strict=True)
            if distance <= _EXACT
        ]

    def _merge(
        self,
        a: _Node,
        b: _Node,
        trials: Sequence[Trial],
        yardstick: Yardstick,
    ) -> _Node:
        """One node of two: the best mixture by the surrogates in their plane."""
        side = np.linspace(0.0, 1.0, _GRID)
        grid = np.array(np.meshgrid(side, side)).reshape(2, -1).T[1:]  # not: both absent
        found = self._on_plane(a, b, trials)
        predicted: dict[str, Vector] = {}
        places: Matrix = np.array([place for _, place in found]).reshape(-1, 2)
        for o in self._objectives:
            raw = np.array([o.sign * t.scores.values[o.name] for t, _ in found if t.scores])
            if len(raw):
                model = surrogate.fit(places, raw)
                predicted[o.name] = o.sign * model.predict(grid)[0]
        s, t = a.best, b.best
        if predicted:
            columns = zip(*predicted.values(), strict=True)
            rows = [dict(zip(predicted, row, strict=True)) for row in columns]
            keys = [(yardstick.constraints.violation(r), -yardstick.scale.scalar(r)) for r in rows]
            if max(keys) > min(keys):
                s, t = grid[min(range(len(keys)), key=keys.__getitem__)]
        return _Node.through(self._absent, s * a.offset + t * b.offset)
