"""NSGA-II as a steady-state, asynchronous fold, on pymoo's operators.

Deb, Pratap, Agarwal & Meyarivan (2002), "A fast and elitist multiobjective genetic algorithm:
NSGA-II", IEEE TEC 6(2). One child at a time enters and the worst leaves, (mu + 1) instead of
(mu + mu): Durillo, Nebro, Luna & Alba (2009), "On the effect of the steady-state selection scheme
in multi-objective genetic algorithms"; no worker ever waits for a generation. The design and the
children: :mod:`evomerge.optimizers.genetic`.

* The population is a fold: every told trial with an x and scores enters, the references among
  them; when there are more than ``pop_size``, the most crowded point of the last front leaves.
* Constraints: constrained domination (the paper's section VI). Feasible points come first, then
  the others by total violation, in units that each told reference point refines.
* PRUNED trials enter behind all others, by their estimates: an estimate must not push a measured
  point off the front, but where most trials are PRUNED a population of the few others would
  starve. FAILED trials never enter. Points of either are not proposed again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge import pareto
from evomerge.optimizers.base import Problem, Yardstick, counts
from evomerge.optimizers.genetic import Breeder, Ints, Matrix, constrained_ranks, violations
from evomerge.recipe import Vector
from evomerge.trial import Trial, value_matrix


class Nsga2:
    """NSGA-II for one, two or many objectives.

    While a reference point is pending, :meth:`ask` returns points of the design only.

    Args:
        problem: What is optimised; weights and scalarisation play no part, and its start is the
            first point of the design.
        pop_size: Size of the population and of the design, >= 2.
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
        self._members: list[Trial] = []
        self._X: Matrix = np.zeros((0, problem.dim))
        self._F: Matrix = np.zeros((0, len(self._names)))
        self._rank: Ints = np.zeros(0, dtype=np.int64)
        self._crowding: Vector = np.zeros(0)

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
            if trial.x is not None and self._yardstick.is_known(trial):
                self._settle([*self._members, trial])
            elif trial.kind == "reference":
                self._settle(self._members)  # the units of the constraints may be others now

    def _settle(self, members: list[Trial]) -> None:
        """Makes these trials the population; above ``pop_size``, one leaves.

        It is the most crowded of the last front, and of equals the newest: noise cannot make the
        population wander.
        """
        F = value_matrix(members, self._names)
        rank = constrained_ranks(F, violations(members, F, self._yardstick))
        if len(members) > self._pop_size:
            last = np.flatnonzero(rank == rank.max())
            crowding = pareto.crowding_distance(F[last])
            leaves = int(last[len(last) - 1 - int(np.argmin(crowding[::-1]))])
            members = [t for i, t in enumerate(members) if i != leaves]
            F, rank = np.delete(F, leaves, axis=0), np.delete(rank, leaves)
        crowding = np.zeros(len(F))
        for r in range(int(rank.max(initial=-1)) + 1):
            crowding[rank == r] = pareto.crowding_distance(F[rank == r])
        self._members, self._F, self._rank, self._crowding = members, F, rank, crowding
        self._X = np.array([t.x for t in members], dtype=np.float64).reshape(-1, self._dim)

    def _better(self, a: int, b: int) -> int:
        """A tournament of two members: lower rank, then lonelier, then the first."""
        if self._rank[a] != self._rank[b]:
            return a if self._rank[a] < self._rank[b] else b
        if self._crowding[a] != self._crowding[b]:
            return a if self._crowding[a] > self._crowding[b] else b
        return a
