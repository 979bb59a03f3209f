"""DELLA: drop entries at random, small ones more often, and rescale the rest (MAGPRUNE).

An entry of rank r (0 the smallest magnitude of its row of n) is kept with probability::

    p = density - epsilon + 2 epsilon r / (n - 1)

and divided by its p. The pruned task vectors are merged by elected signs as in TIES (``della``) or
summed (``della_linear``).

Source: Deep et al. 2024, "DELLA-Merging" (arXiv:2406.11617).

mergekit 0.1.5 rescales all entries of a tensor by one ratio of sums of magnitudes (``rescale:
l1``) and refuses densities within epsilon of 0 or 1; here epsilon shrinks there, so that every
point of a search space is a merge and the expected density is the one asked for. A row is
dimension 1, as in mergekit; a vector is one row. A row of one entry is kept with p = density.
Uniforms have 16 bits, so that an entry is kept with its p rounded up to a multiple of 2^-16.
"""

from __future__ import annotations

from collections.abc import Mapping

from evomerge.methods.base import Parameter, Scalar
from evomerge.methods.ranks import LEVELS
from evomerge.methods.sparse import Sparse


class MagPrune:
    """Keeps an entry with a probability that grows with its rank within the row."""

    ranks = "row"
    random = True
    outliers = False

    def window(self, density: float, shared: Mapping[str, float], n: int) -> tuple[float, float]:
        """The threshold of the 16-bit uniforms at rank 0, and its slope per rank."""
        p = min(max(density, 0.0), 1.0)
        room = min(p, 1 - p)
        epsilon = max(-room, min(room, shared["epsilon"])) if n > 1 else 0.0
        slope = 2 * epsilon / max(1, min(n, LEVELS) - 1)
        return (p - epsilon) * 2.0**16, slope * 2.0**16


_PARAMETERS = {
    "weight": Parameter(0.0, 1.5, 0.5, "weight of the expert's task vector"),
    "density": Parameter(0.05, 1.0, 0.5, "expected share of entries kept", least=0, most=1),
    "lambda": Parameter(0.1, 2.0, 1.0, "scale of the merged task vector", shared=True),
    "epsilon": Parameter(
        0.0,
        0.3,
        0.15,
        "how far probabilities spread about the density",
        shared=True,
        least=0,
        most=1,
    ),
}
_FIXED: Mapping[str, Scalar] = {"normalize": False, "rescale": "1/p", "seed": 0}

DELLA = Sparse(
    "della",
    MagPrune(),
    elects=True,
    parameters=_PARAMETERS,
    fixed={**_FIXED, "normalize": True, "election": "weighted"},
)
DELLA_LINEAR = Sparse(
    "della_linear", MagPrune(), elects=False, parameters=_PARAMETERS, fixed=_FIXED
)
