"""Random search: independent uniform points, the yardstick for every other driver.

Bergstra & Bengio (2012), "Random search for hyper-parameter optimization", JMLR 13.
"""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.optimizers import check_problem
from evomerge.optimizers.base import rng_for
from evomerge.recipe import Vector
from evomerge.trial import Objective, Trial


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

    def __init__(
        self, *, dim: int, seed: int, objectives: Sequence[Objective], start: Vector
    ) -> None:
        self._dim, self._seed, _, _ = check_problem(dim, seed, objectives, start)

    def ask(self, n: int, first: int, pending: Sequence[Trial] = ()) -> list[Vector]:
        """Proposes ``n`` points of shape (d,); never fewer, whatever is pending."""
        del pending
        return [rng_for(self._seed, first + i).random(self._dim) for i in range(n)]

    def tell(self, trials: Sequence[Trial]) -> None:
        """Takes finished trials, and learns nothing from them."""
