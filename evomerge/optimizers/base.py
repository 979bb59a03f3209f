"""What a search driver is: a fold over told trials.

An optimizer is a function of (seed, told trials in order, pending trials). Nothing about it is
ever pickled: to resume is to build a fresh one and ``tell`` it what the store holds, in told
order. Randomness is keyed by (seed, trial number) through :func:`rng_for`, never by call history.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from evomerge.recipe import Vector
from evomerge.trial import Trial


class Optimizer(Protocol):
    """Proposes points of [0, 1]^d.

    Every optimizer is built with the keyword arguments ``dim`` (d), ``seed``, ``objectives`` (the
    searched :class:`~evomerge.trial.Objective` s), ``start`` ((d,) the space's default point) and
    its own settings (the keys of its ``conf/optimizer/*.yaml``).

    Attributes:
        pareto: Whether it searches for a whole front; else it optimises one scalarised number.
    """

    pareto: bool

    def ask(self, n: int, first: int, pending: Sequence[Trial] = ()) -> list[Vector]:
        """Proposes at most ``n`` points, to be numbered ``first``, ``first + 1``, ...

        Args:
            n: How many points are wanted, >= 1.
            first: Number of the first proposed trial.
            pending: Trials asked for and not yet told.

        Returns:
            Points of shape (d,); fewer than ``n`` where the optimizer has to be told something
            first. The law: ``ask(n, first, pending)`` equals ``ask(1, first, pending)`` followed
            by ``ask(n - 1, first + 1, pending + that one)``.
        """
        ...

    def tell(self, trials: Sequence[Trial]) -> None:
        """Takes finished trials in told order, FAILED, PRUNED and reference ones included."""
        ...


def rng_for(seed: int, *keys: int) -> np.random.Generator:
    """A generator for one decision, keyed by (seed, keys), the same in every process.

    Args:
        seed: The study's seed, >= 0.
        keys: What the decision belongs to: usually the trial number; all >= 0.

    Returns:
        A fresh generator.
    """
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=keys))
