"""Differential evolution as an asynchronous fold.

Storn & Price (1997), "Differential evolution: a simple and efficient heuristic for global
optimization over continuous spaces", J. Global Optimization 11. Strategy current-to-pbest and the
rule at the bounds: Zhang & Sanderson (2009), "JADE", IEEE TEC 13(5), without its archive and its
adaptation. A scale factor drawn anew per child ("dither"): Das, Konar & Chakraborty (2005).

* The population has ``pop_size`` slots, and trial number k belongs to slot ``k % pop_size``: a
  replay needs no memory of who was whose child. A told trial takes its slot if that is empty, or
  if it is no worse than who sits there; nobody waits for a generation.
* The references that have an x take the slots of their numbers. The design (``start``, then
  scrambled Sobol points) makes up for the rest of the first ``pop_size`` members.
* Child number k is drawn with (seed, k) from the population of the moment.
* Better is feasible first, then by score, the others by violation (Deb 2000).
* A PRUNED trial fights for its slot by its estimate, which lies below the best trial's score when
  it is stopped: it cannot take that one's slot. FAILED trials take none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from evomerge.errors import ConfigError, unknown_name
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

STRATEGIES = ("current-to-pbest/1/bin", "rand/1/bin")
_MIN_MEMBERS = 4
"""A target and three others."""


class De:
    """Differential evolution on the scalarised normalised scores.

    While a reference point is pending, :meth:`ask` returns points of the design only.

    Args:
        problem: What is optimised; its start is the first point of the design.
        pop_size: Slots, >= 4.
        strategy: One of :data:`STRATEGIES`.
        scale: (low, high) of the uniform scale factor F of difference vectors; 0 < low <= high
            <= 2. Equal ones: no dither.
        crossover: CR, the chance that a coordinate comes from the mutant, in [0, 1].
        p_best: Share of the population, in (0, 1], among whose best current-to-pbest draws.

    Raises:
        ConfigError: A setting that does not make sense.
        UnknownNameError: An unknown strategy.
    """

    pareto = False

    def __init__(
        self,
        problem: Problem,
        *,
        pop_size: int = 20,
        strategy: str = "current-to-pbest/1/bin",
        scale: Sequence[float] = (0.5, 1.0),
        crossover: float = 0.9,
        p_best: float = 0.2,
    ) -> None:
        self._dim, self._seed, self._start = problem.dim, problem.seed, problem.start
        check_integer("pop_size", pop_size, _MIN_MEMBERS)
        if strategy not in STRATEGIES:
            raise unknown_name("strategy", str(strategy), STRATEGIES)
        self._low, self._high = _scale(scale)
        if crossover != 0:
            check_number("crossover", crossover, 0, 1)
        check_number("p_best", p_best, 0, 1)
        self._pop_size, self._strategy = int(pop_size), strategy
        self._crossover, self._p_best = float(crossover), float(p_best)
        self._yardstick = Yardstick(problem)
        self._slots: dict[int, Trial] = {}
        self._n_searched = 0
        self._n_references = 0  # those that took a slot
        self._sobol = SobolSequence(problem.dim, problem.seed, self._pop_size)

    def ask(self, n: int, first: int, pending: Sequence[Trial] = ()) -> list[Vector]:
        """Proposes ``n`` points of shape (d,), of the design only while a reference is pending."""
        index = self._n_searched + n_asked(pending)
        warm = sum(t.kind == "reference" and counts(t) and t.x is not None for t in pending)
        n_design = self._pop_size - self._n_references - warm - index
        return [self._propose(index + i, first + i) for i in range(n_useful(n, n_design, pending))]

    def tell(self, trials: Sequence[Trial]) -> None:
        """Takes finished trials in told order; each with scores fights for its slot."""
        for trial in trials:
            if not counts(trial):
                continue
            self._n_searched += trial.kind == "search"
            self._yardstick.tell(trial)
            if trial.x is None or not self._yardstick.is_known(trial):
                continue
            self._n_references += trial.kind == "reference"
            slot = trial.number % self._pop_size
            holder = self._slots.get(slot)
            if holder is None or self._yardstick.key(trial) <= self._yardstick.key(holder):
                self._slots[slot] = trial

    def _propose(self, index: int, number: int) -> Vector:
        """The point of trial ``number``, which comes after ``index`` search trials."""
        in_design = index + self._n_references < self._pop_size
        if in_design or len(self._slots) < _MIN_MEMBERS:
            return self._start.copy() if index == 0 else self._sobol[index - 1]
        return self._child(number)

    def _best_first(self) -> list[int]:
        """The filled slots; those that hold an estimate come after all measured ones."""
        pruned = TrialState.PRUNED
        held = self._slots
        return sorted(held, key=lambda s: (held[s].state is pruned, self._yardstick.key(held[s])))

    def _child(self, number: int) -> Vector:
        """Mutation and binomial crossover (Storn & Price, eqs. 2 to 5)."""
        rng = rng_for(self._seed, number)
        slots = sorted(self._slots)
        target = number % self._pop_size
        if target not in self._slots:  # its trials failed, or are pending
            target = slots[int(rng.integers(len(slots)))]
        a, b, c = rng.choice([s for s in slots if s != target], size=3, replace=False)
        x, xa, xb, xc = (self._x(s) for s in (target, a, b, c))
        scale = rng.uniform(self._low, self._high)
        if self._strategy == "rand/1/bin":
            mutant = xa + scale * (xb - xc)
        else:
            order = self._best_first()
            n_best = max(1, round(self._p_best * len(order)))
            best = self._x(order[int(rng.integers(n_best))])
            mutant = x + scale * (best - x) + scale * (xa - xb)
        # Half-way to a bound rather than onto it (JADE, eq. 12's companion rule): points on the
        # bound would lose that coordinate's differences for good.
        mutant = np.where(mutant < 0, x / 2, np.where(mutant > 1, (1 + x) / 2, mutant))
        takes = rng.random(self._dim) < self._crossover
        takes[int(rng.integers(self._dim))] = True
        return np.array(np.where(takes, mutant, x), dtype=np.float64)

    def _x(self, slot: int) -> npt.NDArray[np.float64]:
        return np.array(self._slots[slot].x, dtype=np.float64)


def _scale(scale: Sequence[float]) -> tuple[float, float]:
    """The two ends of the scale factor's range."""
    if not isinstance(scale, Sequence) or len(scale) != 2:
        raise ConfigError(f"scale: expected two numbers [low, high], got {scale!r}.")
    low, high = scale
    check_number("scale", low, 0, 2)
    check_number("scale", high, 0, 2)
    if low > high:
        raise ConfigError(f"scale: expected [low, high] with low <= high, got {list(scale)}.")
    return float(low), float(high)
