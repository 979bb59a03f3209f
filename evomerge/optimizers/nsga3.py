"""NSGA-III as a steady-state, asynchronous fold, on pymoo's reference directions and operators.

Deb & Jain (2014), "An evolutionary many-objective optimization algorithm using reference-point-
based nondominated sorting approach, part I", IEEE TEC 18(4); constraints: Jain & Deb, part II.
Tournaments inside a niche, so that one and two objectives are no special case: Seada & Deb (2016),
"A unified evolutionary optimization procedure for single, multiple, and many objectives", IEEE
TEC 20(3). One child at a time enters and the worst leaves, as in :mod:`evomerge.optimizers.nsga2`;
the design and the children: :mod:`evomerge.optimizers.genetic`.

* Directions: at most ``pop_size``, the largest lattice on the simplex (Das & Dennis 1998); where
  that has no point inside, a second one, shrunk by half, is laid into it (the paper's figure 4).
* Scaling: the ideal point and the extreme points are those of all told feasible trials, and the
  nadir follows from them by the hyperplane's intercepts; a pure function of what was told.
* Who leaves: of the last front, a point of the most crowded niche, the one furthest from its
  direction. (The paper draws; a fold that can choose the furthest needs no generator.)
* PRUNED trials enter behind all others, by their estimates, and have no say in the scaling. FAILED
  trials never enter. Points of either are not proposed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np

from evomerge.optimizers.base import Problem, Yardstick, counts
from evomerge.optimizers.genetic import Breeder, Ints, Matrix, constrained_ranks, violations
from evomerge.recipe import Vector
from evomerge.trial import Trial, value_matrix

_EPS = 1e-12
_OFF_AXIS = 1e6
"""Weight of the other objectives in an extreme point's achievement function (eq. 4's 1 / 1e-6)."""


class Nsga3:
    """NSGA-III for any number of objectives; meant for three and more.

    While a reference point is pending, :meth:`ask` returns points of the design only.

    Args:
        problem: What is optimised; weights and scalarisation play no part, and its start is the
            first point of the design.
        pop_size: Size of the population and of the design, and the most directions, >= 2.
        crossover_prob: Chance that a child is crossed at all, else it is a mutated copy; [0, 1].
        crossover_eta: SBX distribution index, > 0; larger keeps children nearer to the parents.
        mutation_prob: Chance per coordinate, in [0, 1]; None for 1 / d.
        mutation_eta: Polynomial mutation's distribution index, > 0; larger makes smaller steps.

    Attributes:
        pareto: True for two objectives or more.

    Raises:
        ConfigError: A setting that does not make sense.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        pop_size: int = 24,
        crossover_prob: float = 0.9,
        crossover_eta: float = 5.0,
        mutation_prob: float | None = None,
        mutation_eta: float = 10.0,
    ) -> None:
        self._breeder = Breeder(
            problem,
            pop_size=pop_size,
            crossover_prob=crossover_prob,
            crossover_eta=crossover_eta,
            mutation_prob=mutation_prob,
            mutation_eta=mutation_eta,
        )
        self._yardstick = Yardstick(problem)
        self._names = tuple(o.name for o in problem.optimised)
        self.pareto = len(self._names) > 1
        self._dim, self._pop_size = problem.dim, int(pop_size)
        self._directions: Matrix | None = None
        self._scored: list[Trial] = []
        self._told_F: Matrix = np.zeros((0, len(self._names)))
        self._told_violation: Vector = np.zeros(0)
        self._violation: Vector = np.zeros(0)
        self._members: list[Trial] = []
        self._X: Matrix = np.zeros((0, problem.dim))
        self._rank: Ints = np.zeros(0, dtype=np.int64)
        self._niche: Ints = np.zeros(0, dtype=np.int64)
        self._distance: Vector = np.zeros(0)

    def ask(self, n: int, first: int, pending: Sequence[Trial] = ()) -> list[Vector]:
        """Proposes ``n`` points of shape (d,), of the design only while a reference is pending."""
        return self._breeder.ask(n, first, pending, self._X, self._better)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Takes finished trials in told order; each with scores contends for a place."""
        for trial in trials:
            if not counts(trial):
                continue
            self._breeder.tell(trial)
            self._yardstick.tell(trial)
            if trial.kind == "reference":  # the units of the constraints may be others now
                self._told_violation = self._violations(self._scored)
                self._settle(self._members)
            if trial.x is not None and self._yardstick.is_scored(trial):
                self._scored.append(trial)
                self._told_F = np.vstack([self._told_F, value_matrix([trial], self._names)])
                self._told_violation = np.append(self._told_violation, self._violations([trial]))
                self._settle([*self._members, trial])
            elif trial.x is not None and self._scored and self._yardstick.is_known(trial):
                self._settle([*self._members, trial])

    def _settle(self, members: list[Trial]) -> None:
        """Makes these trials the population; above ``pop_size``, one leaves."""
        if not members:
            return
        F = value_matrix(members, self._names)
        violation = violations(members, F, self._yardstick)
        rank = constrained_ranks(F, violation)
        niche, distance = self._associate(F, rank)
        if len(members) > self._pop_size:
            last = np.flatnonzero(rank == rank.max())
            crowd = np.bincount(niche)[niche[last]]
            # Most crowded, then furthest, then newest.
            leaves = int(last[np.lexsort((last, distance[last], crowd))[-1]])
            members = [t for i, t in enumerate(members) if i != leaves]
            rank, niche = np.delete(rank, leaves), np.delete(niche, leaves)
            distance, violation = np.delete(distance, leaves), np.delete(violation, leaves)
        self._members, self._rank, self._violation = members, rank, violation
        self._niche, self._distance = niche, distance
        self._X = np.array([t.x for t in members], dtype=np.float64)

    def _associate(self, F: Matrix, rank: Ints) -> tuple[Ints, Vector]:
        """Each member's direction (n,) and its distance from it (n,), in scaled objectives."""
        feasible = self._told_violation == 0
        told = self._told_F[feasible] if feasible.any() else self._told_F
        ideal, span = scaling(told, F[rank == 0])
        if self._directions is None:
            found = directions(len(self._names), self._pop_size)
            self._directions = found / np.linalg.norm(found, axis=1, keepdims=True)
        unit = self._directions
        loss = (ideal - F) / span
        along = loss @ unit.T
        squares = (loss**2).sum(axis=1, keepdims=True) - along**2
        niche = squares.argmin(axis=1).astype(np.int64)
        return niche, np.sqrt(np.maximum(squares[np.arange(len(F)), niche], 0.0))

    def _violations(self, trials: Sequence[Trial]) -> Vector:
        return np.array([self._yardstick.violation(t) for t in trials], dtype=np.float64)

    def _better(self, a: int, b: int) -> int:
        """A tournament of two members: violation; in one niche rank, then distance; the first."""
        if self._violation[a] != self._violation[b]:
            return a if self._violation[a] < self._violation[b] else b
        if self._niche[a] != self._niche[b]:
            return a
        if self._rank[a] != self._rank[b]:
            return a if self._rank[a] < self._rank[b] else b
        return a if self._distance[a] <= self._distance[b] else b


def directions(m: int, n_most: int) -> Matrix:
    """Reference directions.

    Args:
        m: Number of objectives, >= 1.
        n_most: How many there may be, >= 1; never fewer than the m axes.

    Returns:
        (n, m), each >= 0 with sum 1.
    """
    if m == 1:
        return np.ones((1, 1))
    from pymoo.util.ref_dirs import get_reference_directions

    def finest(n_free: int) -> int:
        """Parts per axis of the largest lattice of at most ``n_free`` points; 0 for none."""
        parts = 0
        while comb(parts + m, m - 1) <= n_free:
            parts += 1
        return parts

    outer = max(1, finest(n_most))
    layers = [np.asarray(get_reference_directions("das-dennis", m, n_partitions=outer))]
    inner = finest(n_most - len(layers[0])) if outer < m else 0
    if inner:
        lattice = get_reference_directions("das-dennis", m, n_partitions=inner)
        layers.append((np.asarray(lattice) + 1 / m) / 2)
    return np.concatenate(layers).astype(np.float64)


def scaling(told: Matrix, front: Matrix) -> tuple[Vector, Vector]:
    """The ideal point, and the distance of the nadir from it (Deb & Jain 2014, section IV-C).

    Args:
        told: (n, m) values of everything that counts, n >= 1, higher is better.
        front: (k, m) values of the first front, k >= 1.

    Returns:
        (m,) ideal and (m,) span > 0: the hyperplane's intercepts through the extreme points, never
        beyond the worst told value; where there is no such plane, the extent of the front. The
        extreme points are sought in units of the told range, unlike in the paper: a factor on an
        objective changes nothing.
    """
    m = told.shape[1]
    ideal: Vector = told.max(axis=0)
    widest: Vector = np.ptp(told, axis=0)
    widest = np.where(widest > 0, widest, 1.0)
    loss = (ideal - told) / widest
    weights = np.where(np.eye(m) > 0, 1.0, _OFF_AXIS)
    extreme = loss[(loss[None] * weights[:, None, :]).max(axis=2).argmin(axis=1)]
    span = ((ideal - front) / widest).max(axis=0)
    try:
        plane = np.linalg.solve(extreme, np.ones(m))
        if (plane >= 1e-9).all() and np.allclose(extreme @ plane, 1.0):
            span = np.minimum(1 / plane, 1.0)
    except np.linalg.LinAlgError:
        pass
    return ideal, widest * np.where(span > _EPS, span, 1.0)
