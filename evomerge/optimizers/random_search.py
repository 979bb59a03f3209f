"""Random search: independent uniform points, the yardstick for every other driver.

Bergstra & Bengio (2012), "Random search for hyper-parameter optimization", JMLR 13.
"""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.optimizers.base import Problem, rng_for
from evomerge.recipe import Vector
from evomerge.trial import Trial


class Random:
    """Uniform points of [0, 1]^d; trial number k is a function of (seed, k) alone.

    Args:
        dim: Dimension d of the space.
        seed: The study's seed, >= 0.
        objectives: The searched objectives; not looked at.
        start: (d,) the space's default point; not looked at.

    Raises:
        ConfigError: A setting that does not make sense.
    """

    pareto = False

    def __init__(self, problem: Problem) -> None:
        self._dim, self._seed = problem.dim, problem.seed

    def ask(self, n: int, first: int, pending: Sequence[Trial] = ()) -> list[Vector]:
        """Proposes ``n`` points of shape (d,); never fewer, whatever is pending."""
        del pending
        return [rng_for(self._seed, first + i).random(self._dim) for i in range(n)]

    def tell(self, trials: Sequence[Trial]) -> None:
        """Takes finished trials, and learns nothing from them."""
