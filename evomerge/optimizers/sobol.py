"""Scrambled Sobol points: random search without its gaps and clusters, a yardstick.

Sobol (1967), "On the distribution of points in a cube and the approximate evaluation of
integrals"; scrambling: Owen (1998). As a search: Bousquet, Gelly, Kurach, Teytaud & Vincent
(2017), "Critical hyper-parameters: no random, no cry", arXiv:1706.03200.
"""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.errors import ConfigError
from evomerge.optimizers.base import Problem, counts
from evomerge.optimizers.design import SobolSequence
from evomerge.recipe import Vector
from evomerge.trial import Trial


class Sobol:
    """The points of one scrambled Sobol sequence, in order and for ever.

    A trial gets the next point that no search trial, told or pending, got before: reference points
    take none, so that the balance of the sequence (2^k points, one in each of 2^k equal boxes)
    holds for the search trials.

    Args:
        problem: Its dimension (at most 21,201) and seed; nothing else is looked at.

    Attributes:
        max_dim: scipy's table of direction numbers ends there.

    Raises:
        ConfigError: Too many dimensions.
    """

    pareto = False
    max_dim = 21_201

    def __init__(self, problem: Problem) -> None:
        if problem.dim > self.max_dim:
            raise ConfigError(
                f"sobol: expected a space of at most {self.max_dim} dimensions, got "
                f"{problem.dim}; take optimizer=random."
            )
        self._sequence = SobolSequence(problem.dim, problem.seed)
        self._n_searched = 0

    def ask(self, n: int, first: int, pending: Sequence[Trial] = ()) -> list[Vector]:
        """Proposes ``n`` points of shape (d,); never fewer, whatever is pending."""
        del first
        n_open = sum(t.kind == "search" and counts(t) for t in pending)
        index = self._n_searched + n_open
        return [self._sequence[index + i] for i in range(n)]

    def tell(self, trials: Sequence[Trial]) -> None:
        """Counts finished search trials, and learns nothing from them."""
        self._n_searched += sum(t.kind == "search" and counts(t) for t in trials)
