"""TIES: trim, elect signs, merge what agrees.

Per tensor and expert only the ``density n`` entries of largest magnitude are kept; the values
whose sign wins the election are averaged (``normalize``) or summed, times ``lambda``::

    W = W_0 + lambda sum_k [agree_k] w_k t_k / sum_k [agree_k] w_k

Source: Yadav et al. 2023, "TIES-Merging" (arXiv:2306.01708). As mergekit 0.1.5 we trim per tensor
and elect by weighted values; the paper trims over the whole model, has no weights within the
election (``fixed.election: paper``) and resolves a tie by the majority of all signs.
"""

from __future__ import annotations

from collections.abc import Mapping

from evomerge.methods.base import Parameter
from evomerge.methods.sparse import Sparse


class LargestMagnitude:
    """Keeps the entries of largest magnitude of a tensor, at least one."""

    ranks = "tensor"
    random = False
    outliers = False

    def window(self, density: float, shared: Mapping[str, float], n: int) -> tuple[float, float]:
        """Ranks kept, counted from the largest."""
        if density >= 1:
            return 0, n
        return 0, max(1, int(density * n)) if density > 0 else 0


TIES = Sparse(
    name="ties",
    prune=LargestMagnitude(),
    elects=True,
    parameters={
        "weight": Parameter(0.0, 1.0, 0.5, "weight of the expert where its sign is elected"),
        "density": Parameter(
            0.05, 1.0, 0.3, "share of the task vector's entries kept", least=0, most=1
        ),
        "lambda": Parameter(0.1, 2.0, 1.0, "scale of the merged task vector", shared=True),
    },
    fixed={"normalize": True, "rescale": "none", "election": "weighted", "equal": "first"},
)
