"""NSGA-II as a steady-state, asynchronous fold, on pymoo's operators.

Deb, Pratap, Agarwal & Meyarivan (2002), "A fast and elitist multiobjective genetic algorithm:
NSGA-II", IEEE TEC 6(2). One child at a time enters and the worst leaves, (mu + 1) instead of
(mu + mu): Durillo, Nebro, Luna & Alba (2009), "On the effect of the steady-state selection scheme
in multi-objective genetic algorithms"; no worker ever waits for a generation. Crossover: simulated
binary, Deb & Agrawal (1995); mutation: polynomial, Deb & Goyal (1996); both pymoo's, which keep to
the bounds by construction.

* The population is a fold: every told COMPLETE trial with an x enters, the references among them;
  when there are more than ``pop_size``, the most crowded point of the last front leaves.
* The first ``pop_size`` search trials are a design: ``start``, then scrambled Sobol points. Which
  of them a trial gets follows from how many search trials were told or are pending.
* Child number k is drawn with (seed, k) from the population of the moment.
* PRUNED and FAILED trials never enter: an estimate must not push a measured point off the front.
  Nor are their points proposed again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from evomerge import pareto
from evomerge.optimizers.base import (
    Problem,
    awaits_reference,
    check_integer,
    check_number,
    counts,
    rng_for,
)
from evomerge.optimizers.design import SobolSequence
from evomerge.recipe import Vector
from evomerge.trial import Trial, TrialState

Matrix = npt.NDArray[np.float64]

_SAME = 1e-9
"""Two points closer than this in every coordinate are the same."""
_REDRAWS = 50
"""Tries for a child that was not proposed before; then a uniform point."""


class Nsga2:
    """NSGA-II for one, two or many objectives.

    While a reference point is pending, :meth:`ask` returns nothing.

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
        dim = problem.dim
        self._dim, self._seed, self._start = dim, problem.seed, problem.start
        check_integer("pop_size", pop_size, 2)
        for name, value in (
            ("crossover_prob", crossover_prob),
            ("mutation_prob", 1 / dim if mutation_prob is None else mutation_prob),
        ):
            if value != 0:
                check_number(name, value, 0, 1)
        check_number("crossover_eta", crossover_eta, 0)
        check_number("mutation_eta", mutation_eta, 0)
        self._names = tuple(o.name for o in problem.optimised)
        self.pareto = len(self._names) > 1
        self._pop_size = int(pop_size)
        self._crossover_prob, self._crossover_eta = float(crossover_prob), float(crossover_eta)
        self._mutation_prob = 1 / dim if mutation_prob is None else float(mutation_prob)
        self._mutation_eta = float(mutation_eta)
        self._n_searched = 0
        self._seen: list[Vector] = []
        self._X: Matrix = np.zeros((0, dim))
        self._F: Matrix = np.zeros((0, len(self._names)))
        self._rank: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._crowding: Vector = np.zeros(0)
        self._sobol = SobolSequence(dim, problem.seed, self._pop_size)

    def ask(self, n: int, first: int, pending: Sequence[Trial] = ()) -> list[Vector]:
        """Proposes ``n`` points of shape (d,), or none while a reference point is pending."""
        if awaits_reference(pending):
            return []
        open_trials = [t for t in pending if counts(t)]
        index = self._n_searched + len(open_trials)
        taken = np.array(
            [*self._seen, *(t.x for t in open_trials if t.x is not None)], dtype=np.float64
        ).reshape(-1, self._dim)
        points: list[Vector] = []
        for i in range(n):
            x = self._propose(index + i, rng_for(self._seed, first + i), taken)
            taken = np.vstack([taken, x])
            points.append(x)
        return points

    def tell(self, trials: Sequence[Trial]) -> None:
        """Takes finished trials in told order; each COMPLETE one contends for a place."""
        for trial in trials:
            if not counts(trial):
                continue
            self._n_searched += trial.kind == "search"
            if trial.x is None:
                continue
            x = np.array(trial.x, dtype=np.float64)
            self._seen.append(x)
            values = trial.scores.values if trial.scores is not None else {}
            f = np.array([values.get(name, np.nan) for name in self._names])
            if trial.state is TrialState.COMPLETE and np.isfinite(f).all():
                self._enter(x, f)

    def _enter(self, x: Vector, f: Vector) -> None:
        """Adds one point; above ``pop_size``, the most crowded of the last front leaves."""
        X, F = np.vstack([self._X, x]), np.vstack([self._F, f])
        rank = pareto.ranks(F)
        if len(X) > self._pop_size:
            last = np.flatnonzero(rank == rank.max())
            crowding = pareto.crowding_distance(F[last])
            # Of equals the newest leaves: noise cannot make the population wander.
            leaves = last[len(last) - 1 - int(np.argmin(crowding[::-1]))]
            X, F = np.delete(X, leaves, axis=0), np.delete(F, leaves, axis=0)
            rank = np.delete(rank, leaves)  # it was of the last front: no other rank changes
        crowding = np.zeros(len(X))
        for r in range(int(rank.max()) + 1):
            crowding[rank == r] = pareto.crowding_distance(F[rank == r])
        self._X, self._F, self._rank, self._crowding = X, F, rank, crowding

    def _propose(self, index: int, rng: np.random.Generator, taken: Matrix) -> Vector:
        """One point that differs from all ``taken`` ones.

        Args:
            index: How many search trials came before it.
            rng: Its own generator.
            taken: (t, d) points told or pending.
        """
        if index < self._pop_size or len(self._X) < 2:
            x = self._design(index)
            if not _is_taken(x, taken):
                return x
        if len(self._X) >= 2:
            for _ in range(_REDRAWS):
                x = self._child(rng)
                if not _is_taken(x, taken):
                    return x
        return rng.random(self._dim)

    def _design(self, index: int) -> Vector:
        """Point ``index`` of the initial design: ``start``, then scrambled Sobol points."""
        if index == 0:
            return self._start.copy()
        return self._sobol[index - 1]

    def _child(self, rng: np.random.Generator) -> Vector:
        """Binary tournaments, crossover and mutation."""
        from pymoo.operators.crossover.sbx import cross_sbx
        from pymoo.operators.mutation.pm import mut_pm

        low, high = np.zeros(self._dim), np.ones(self._dim)
        parents = self._X[[self._tournament(rng), self._tournament(rng)]]
        x = parents[:1].copy()
        if rng.random() < self._crossover_prob:
            pair = cross_sbx(
                parents[:, None, :].copy(),
                low,
                high,
                eta=np.array([[self._crossover_eta]]),
                prob_var=np.array([[0.5]]),
                prob_bin=np.array([[0.5]]),
                random_state=rng,
            )
            x = pair[int(rng.random() < 0.5)]
        x = mut_pm(
            x,
            low,
            high,
            eta=np.array([self._mutation_eta]),
            prob=np.array([self._mutation_prob]),
            at_least_once=False,
            random_state=rng,
        )
        return np.array(np.clip(x[0], 0.0, 1.0), dtype=np.float64)

    def _tournament(self, rng: np.random.Generator) -> int:
        """The better of two population members: lower rank, then lonelier, then a coin."""
        a, b = (int(i) for i in rng.choice(len(self._X), size=2, replace=False))
        if self._rank[a] != self._rank[b]:
            return a if self._rank[a] < self._rank[b] else b
        if self._crowding[a] != self._crowding[b]:
            return a if self._crowding[a] > self._crowding[b] else b
        return a  # the pair came in random order


def _is_taken(x: Vector, taken: Matrix) -> bool:
    """Whether ``x`` is one of the (t, d) points."""
    return bool((np.abs(taken - x) <= _SAME).all(axis=1).any())
