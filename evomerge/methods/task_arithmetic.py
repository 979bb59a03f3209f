"""Task arithmetic: add scaled task vectors to the base.

``W = W_0 + sum_k c_k (W_k - W_0) = (1 - sum_k c_k) W_0 + sum_k c_k W_k``

The second form needs no stored task vectors: the mapped checkpoints are the basis. ``c_k`` is the
weight, or with ``norms: equal`` ``w_k mean_j |tau_j| / |tau_k|`` of each tensor: at equal weights
all experts move every tensor equally far, however differently they were trained, and the mean
length stays. That takes one pass over the weights before the first candidate.

Source: Ilharco et al. 2023, "Editing models with task arithmetic" (arXiv:2212.04089). Coefficients
over norms, layer by layer: Wei et al. 2025, DOGE (arXiv:2501.01230), which has 0.07 in the place
of the mean length.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from evomerge.errors import ConfigError, unknown_name
from evomerge.methods.base import Basis, Parameter, Scalar, Sources
from evomerge.methods.inner_products import gram
from evomerge.methods.kernels import weighted_sum
from evomerge.methods.low_rank import LowRank, Source

_NORMS = ("own", "equal")


class TaskArithmetic:
    """``W = W_0 + sum_k c_k (W_k - W_0)``."""

    name = "task_arithmetic"
    needs_base = True
    low_rank = True
    n_experts: tuple[int, int | None] = (1, None)
    parameters: Mapping[str, Parameter] = {
        "weight": Parameter(0.0, 1.5, 0.5, "scale of the expert's task vector"),
    }
    fixed: Mapping[str, Scalar] = {"norms": "own"}  # or equal: tensor by tensor

    def survey(self, tensors: Iterable[Sources], fixed: Mapping[str, Scalar]) -> None:
        """Checks the setting; raises UnknownNameError where it is neither."""
        if fixed["norms"] not in _NORMS:
            raise unknown_name("value of fixed.norms", str(fixed["norms"]), _NORMS)

    def prepare(self, sources: Sources, survey: None, fixed: Mapping[str, Scalar]) -> Basis:
        """Base and experts themselves, no copy; and what weights are multiplied by."""
        if sources.base is None:
            raise ConfigError("task_arithmetic needs a base model; set models.base.")
        factors = None
        if fixed["norms"] == "equal":
            lengths = [_length(sources.base, e) for e in sources.experts]
            mean = sum(lengths) / len(lengths)
            factors = [mean / n if n > 0 else 1.0 for n in lengths]
        return Basis((sources.base, *sources.experts), extra=factors)

    def combine(
        self,
        out: torch.Tensor,
        basis: Basis,
        coefficients: Mapping[str, Sequence[float]],
        fixed: Mapping[str, Scalar],
    ) -> None:
        """Writes the merge."""
        weights = list(coefficients["weight"])
        if basis.extra is not None:
            weights = [w * f for w, f in zip(weights, basis.extra, strict=True)]
        weighted_sum(out, basis.tensors, [1.0 - sum(weights), *weights])


def _length(base: torch.Tensor, expert: Source) -> float:
    """Euclidean norm of a task vector."""
    if isinstance(expert, LowRank):  # |L R|^2 = tr(L^T L R R^T)
        left, right = expert.left.double(), expert.right.double()
        return float(((left.T @ left) * (right @ right.T)).sum().clamp(min=0) ** 0.5)
    return float(gram([expert], base)[0, 0] ** 0.5)
