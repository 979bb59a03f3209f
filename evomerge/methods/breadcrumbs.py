"""Model Breadcrumbs: drop the largest entries of the task vectors and the smallest.

Per tensor the ``gamma n`` entries of largest magnitude are dropped as outliers, then the smallest
until ``density n`` are left (outliers come back where the density leaves no room). What is left is
summed (``breadcrumbs``) or merged by elected signs as in TIES (``breadcrumbs_ties``)::

    W = W_0 + lambda sum_k w_k t_k

Source: Davari and Belilovsky 2023, "Model Breadcrumbs" (arXiv:2312.06795), in mergekit 0.1.5's
parameters. As there, density 1 keeps everything, whatever gamma is.
"""

from __future__ import annotations

from collections.abc import Mapping

from evomerge.methods.base import Parameter, Scalar
from evomerge.methods.sparse import Sparse


class MiddleMagnitude:
    """Keeps the entries between the outliers and the small ones."""

    ranks = "tensor"
    random = False
    outliers = True

    def window(self, density: float, shared: Mapping[str, float], n: int) -> tuple[float, float]:
        """Ranks kept, counted from the largest."""
        if density >= 1:
            return 0, n
        n_kept = int(max(density, 0.0) * n)
        first = min(int(shared["gamma"] * n), n - n_kept)
        return first, first + n_kept


_PARAMETERS = {
    "weight": Parameter(0.0, 1.5, 0.5, "scale of the expert's task vector"),
    "density": Parameter(
        0.05, 1.0, 0.9, "share of the task vector's entries kept", least=0, most=1
    ),
    "lambda": Parameter(0.1, 2.0, 1.0, "scale of the merged task vector", shared=True),
    "gamma": Parameter(
        0.0, 0.05, 0.01, "share of largest entries dropped", shared=True, least=0, most=1
    ),
}
_FIXED: Mapping[str, Scalar] = {"normalize": False, "rescale": "none", "equal": "first"}

BREADCRUMBS = Sparse(
    "breadcrumbs", MiddleMagnitude(), elects=False, parameters=_PARAMETERS, fixed=_FIXED
)
BREADCRUMBS_TIES = Sparse(
    "breadcrumbs_ties",
    MiddleMagnitude(),
    elects=True,
    parameters=_PARAMETERS,
    fixed={**_FIXED, "election": "weighted"},
)
