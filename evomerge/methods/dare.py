"""DARE: drop entries of the task vectors at random and rescale the rest.

Each entry is kept with probability p, the ``density``, and divided by p, which keeps its expected
value: ``t = [u < p] (W_k - W_0) / p``. The pruned task vectors are summed (``dare_linear``) or
merged by elected signs as in TIES (``dare_ties``)::

    W = W_0 + lambda sum_k w_k t_k

p is the density, rounded up to a multiple of 2^-16.

Source: Yu et al. 2023, "Language Models are Super Mario" (arXiv:2311.03099).

mergekit 0.1.5 rescales by the ratio of the sums of magnitudes before and after (``rescale: l1``)
instead. The two agree in large tensors, but over a tensor of 40 entries the ratio has a standard
deviation of 1.55, it jumps whenever a large entry enters the mask, and it needs a second pass over
the tensor; so the paper's ``1/p`` is the default. Also on purpose: mergekit draws a new mask per
merge (its in-memory evaluation never seeds it), we draw each entry's uniform once.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

from evomerge.methods.base import Parameter, Scalar
from evomerge.methods.sparse import Sparse


class AtRandom:
    """Keeps every entry with the same probability."""

    ranks = "none"
    random = True
    outliers = False

    def window(self, density: float, shared: Mapping[str, float], n: int) -> tuple[float, float]:
        """The threshold of the 16-bit uniforms, a whole number."""
        return ceil(min(max(density, 0.0), 1.0) * 2.0**16), 0.0


_PARAMETERS = {
    "weight": Parameter(0.0, 1.5, 0.5, "scale of the expert's task vector"),
    "density": Parameter(0.05, 1.0, 0.5, "probability that an entry is kept", least=0, most=1),
    "lambda": Parameter(0.1, 2.0, 1.0, "scale of the merged task vector", shared=True),
}
_FIXED: Mapping[str, Scalar] = {"normalize": False, "rescale": "1/p", "seed": 0}

DARE_LINEAR = Sparse("dare_linear", AtRandom(), elects=False, parameters=_PARAMETERS, fixed=_FIXED)
DARE_TIES = Sparse(
    "dare_ties",
    AtRandom(),
    elects=True,
    parameters=_PARAMETERS,
    fixed={**_FIXED, "election": "weighted"},
)
