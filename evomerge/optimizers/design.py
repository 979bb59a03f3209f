"""Space-filling designs: scrambled Sobol points, one at a time and for ever.

Sobol (1967); scrambling: Owen (1998), "Scrambling Sobol' and Niederreiter-Xing points", J.
Complexity 14(4). A longer sequence from the same seed begins with the shorter one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from evomerge.optimizers.base import rng_for
from evomerge.recipe import Vector


class SobolSequence:
    """Point number k of one scrambled Sobol sequence, made on demand.

    Args:
        dim: Dimension d, at most 21,201.
        seed: The study's seed.
        n_expected: How many points are surely wanted: made at once, which saves making them anew.
    """

    def __init__(self, dim: int, seed: int, n_expected: int = 32) -> None:
        self._dim, self._seed = dim, seed
        self._n_expected = n_expected
        self._points: npt.NDArray[np.float64] = np.zeros((0, dim))

    def __getitem__(self, index: int) -> Vector:
        """Point ``index`` >= 0, shape (d,), in [0, 1)."""
        if index >= len(self._points):
            from scipy.stats import qmc

            sobol = qmc.Sobol(self._dim, scramble=True, rng=rng_for(self._seed))
            log2 = int(np.ceil(np.log2(max(index + 1, self._n_expected, 2))))
            self._points = np.asarray(sobol.random_base2(log2), dtype=np.float64)
        return np.array(self._points[index])
