"""What NSGA-II and NSGA-III share: the design, the children, and constrained domination.

Crossover: simulated binary, Deb & Agrawal (1995); mutation: polynomial, Deb & Goyal (1996); both
pymoo's, which keep to the bounds by construction. Constrained domination: Deb, Pratap, Agarwal &
Meyarivan (2002), section VI.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from evomerge import pareto
from evomerge.optimizers.base import (
    Problem,
    Yardstick,
    check_integer,
    check_number,
    counts,
    n_asked,
    n_useful,
    rng_for,
)
from evomerge.optimizers.design import SobolSequence
from evomerge.recipe import Vector
from evomerge.trial import Trial, TrialState

Matrix = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Better = Callable[[int, int], int]
"""Of two population members, in random order, the one that becomes a parent."""

_SAME = 1e-9
"""Two points closer than this in every coordinate are the same."""
_BEHIND = 1e9
"""Violation from which on a trial is PRUNED."""
_REDRAWS = 50
"""Tries for a child that was not proposed before; then a uniform point."""


class Breeder:
    """Proposes a design first, then children; never a point that was told or is pending.

    * The first ``pop_size`` search trials are the design: ``start``, then scrambled Sobol points.
      Which of them a trial gets follows from how many search trials were told or are pending.
    * Child number k is drawn with (seed, k) from the population of the moment.

    Args:
        problem: What is optimised.
        pop_size: Size of the population and of the design, >= 2.
        crossover_prob: Chance that a child is crossed at all, in [0, 1].
        crossover_eta: SBX distribution index, > 0.
        mutation_prob: Chance per coordinate, in [0, 1]; None for 1 / d.
        mutation_eta: Polynomial mutation's distribution index, > 0.

    Raises:
        ConfigError: A setting that does not make sense.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        pop_size: int,
        crossover_prob: float,
        crossover_eta: float,
        mutation_prob: float | None,
        mutation_eta: float,
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
        self._pop_size = int(pop_size)
        self._crossover_prob, self._crossover_eta = float(crossover_prob), float(crossover_eta)
        self._mutation_prob = 1 / dim if mutation_prob is None else float(mutation_prob)
        self._mutation_eta = float(mutation_eta)
        self._n_searched = 0
        self._seen: Matrix = np.zeros((64, dim))  # grows by doubling; the first n_seen rows count
        self._n_seen = 0
        self._sobol = SobolSequence(dim, problem.seed, self._pop_size)

    def tell(self, trial: Trial) -> None:
        """Takes any told trial that counts, of whatever state: its point is not proposed again."""
        self._n_searched += trial.kind == "search"
        if trial.x is not None:
            if self._n_seen == len(self._seen):
                self._seen = np.vstack([self._seen, np.zeros_like(self._seen)])
            self._seen[self._n_seen] = trial.x
            self._n_seen += 1

    def ask(
        self, n: int, first: int, pending: Sequence[Trial], X: Matrix, better: Better
    ) -> list[Vector]:
        """Proposes ``n`` points of shape (d,), of the design only while a reference is pending.

        Args:
            n: How many, at most.
            first: Number of the first of them.
            pending: Trials asked for and not yet told.
            X: (p, d) the population.
            better: Decides a tournament between two rows of X.
        """
        open_trials = [t for t in pending if counts(t)]
        index = self._n_searched + n_asked(pending)
        taken = np.array([t.x for t in open_trials if t.x is not None], dtype=np.float64).reshape(
            -1, self._dim
        )
        points: list[Vector] = []
        for i in range(n_useful(n, self._pop_size - index, pending)):
            x = self._propose(index + i, rng_for(self._seed, first + i), taken, X, better)
            taken = np.vstack([taken, x])
            points.append(x)
        return points

    def _propose(
        self, index: int, rng: np.random.Generator, taken: Matrix, X: Matrix, better: Better
    ) -> Vector:
        """One point that differs from all told and (t, d) ``taken`` ones, the ``index``-th."""
        if index < self._pop_size or len(X) < 2:
            x = self._start.copy() if index == 0 else self._sobol[index - 1]
            if self._is_new(x, taken):
                return x
        if len(X) >= 2:
            for _ in range(_REDRAWS):
                x = self._child(rng, X, better)
                if self._is_new(x, taken):
                    return x
        return rng.random(self._dim)

    def _is_new(self, x: Vector, taken: Matrix) -> bool:
        return not (is_taken(x, taken) or is_taken(x, self._seen[: self._n_seen]))

    def _child(self, rng: np.random.Generator, X: Matrix, better: Better) -> Vector:
        """Binary tournaments, crossover and mutation."""
        from pymoo.operators.crossover.sbx import cross_sbx
        from pymoo.operators.mutation.pm import mut_pm

        low, high = np.zeros(self._dim), np.ones(self._dim)
        pairs = [rng.choice(len(X), size=2, replace=False) for _ in range(2)]
        parents = X[[better(int(a), int(b)) for a, b in pairs]]
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


def violations(trials: Sequence[Trial], F: Matrix, yardstick: Yardstick) -> Vector:
    """(n,) total violations, and for PRUNED trials more than any other, the dominated ones most.

    An estimate must not push a measured point off the front; as long as there is room it may
    stand behind all of them.

    Args:
        trials: n scored or PRUNED ones.
        F: (n, m) their values, higher is better.
        yardstick: Reads them.
    """
    found = np.array([yardstick.violation(t) for t in trials], dtype=np.float64)
    pruned = np.array([t.state is TrialState.PRUNED for t in trials], dtype=bool)
    if pruned.any():
        found[pruned] = _BEHIND + pareto.ranks(F[pruned])
    return found


def constrained_ranks(F: Matrix, violation: Vector) -> Ints:
    """Non-domination ranks under constrained domination.

    Args:
        F: (n, m) higher is better.
        violation: (n,) total violation, >= 0; 0 where feasible.

    Returns:
        (n,) ranks: the feasible points' own, then one more for each next larger violation.
    """
    feasible = violation == 0
    if feasible.all():
        return pareto.ranks(F)
    rank = np.zeros(len(F), dtype=np.int64)
    rank[feasible] = pareto.ranks(F[feasible])
    _, order = np.unique(violation[~feasible], return_inverse=True)
    rank[~feasible] = rank[feasible].max(initial=-1) + 1 + order
    return rank


def is_taken(x: Vector, taken: Matrix) -> bool:
    """Whether ``x`` is one of the (t, d) points."""
    near = taken[np.abs(taken[:, 0] - x[0]) <= _SAME]  # nearly always none
    return bool((np.abs(near - x) <= _SAME).all(axis=1).any())
