"""Model Stock: as far from the base towards the experts' mean as their angle says.

``W = (1 - t) W_0 + t / K sum_k W_k`` with ``t = lambda K c / (1 + (K - 1) c)`` and c the mean
cosine between two task vectors, of whole tensors or, with ``filter_wise``, of every row. The paper
and mergekit have ``lambda`` 1.

Source: Jang et al. 2024, "Model Stock: All we need is just a few fine-tuned models"
(arXiv:2403.19522); mergekit's ``model_stock``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from evomerge.errors import ConfigError
from evomerge.methods.base import Basis, Parameter, Scalar, Sources
from evomerge.methods.inner_products import gram, grams_along
from evomerge.methods.kernels import weighted_sum
from evomerge.methods.parts import broadcast_sum


class ModelStock:
    """The experts' mean, drawn to the base by the angle between their task vectors."""

    name = "model_stock"
    needs_base = True
    n_experts: tuple[int, int | None] = (2, None)
    parameters: Mapping[str, Parameter] = {
        "lambda": Parameter(0.0, 2.0, 1.0, "scale of t; mergekit: 1", shared=True),
    }
    fixed: Mapping[str, Scalar] = {"filter_wise": False, "floor": 0.0}

    def survey(self, tensors: Iterable[Sources], fixed: Mapping[str, Scalar]) -> None:
        """Nothing to survey."""

    def prepare(self, sources: Sources, survey: None, fixed: Mapping[str, Scalar]) -> Basis:
        """The sources themselves, and t: a number, or one per row."""
        base, experts = sources.base, sources.experts
        if base is None:
            raise ConfigError("model_stock needs a base model; set models.base.")
        if fixed["filter_wise"] and base.dim() > 1:
            inner = grams_along(experts, -1, base)
        else:
            inner = torch.as_tensor(gram(experts, base))
        return Basis((base, *experts), _interpolation(inner, float(fixed["floor"])))

    def combine(
        self,
        out: torch.Tensor,
        basis: Basis,
        coefficients: Mapping[str, Sequence[float]],
        fixed: Mapping[str, Scalar],
    ) -> None:
        """Writes the merge."""
        t = basis.extra * coefficients["lambda"][0]
        k = len(basis.tensors) - 1
        if t.dim():
            broadcast_sum(out, basis.tensors, [1 - t, *[t / k] * k])
        else:
            weighted_sum(out, basis.tensors, [1 - float(t), *[float(t) / k] * k])


def _interpolation(inner: torch.Tensor, floor: float) -> torch.Tensor:
    """The paper's t from (K, K, ...) inner products of task vectors.

    Args:
        inner: Inner products.
        floor: Least product of two lengths that a cosine is taken with; mergekit: 1e-6.

    Returns:
        float64 of the trailing shape; 0 where t has no finite value (opposing task vectors).
    """
    k = len(inner)
    total = torch.zeros_like(inner[0, 0])
    for i in range(k):
        for j in range(i):
            lengths = (inner[i, i] * inner[j, j]).sqrt().clamp(min=max(floor, 1e-30))
            total += (inner[i, j] / lengths).clamp(-1, 1)
    cos = total / (k * (k - 1) / 2)
    below = 1 + (k - 1) * cos
    singular = below.abs() < 1e-6
    return torch.where(singular, 0.0, k * cos / torch.where(singular, 1.0, below))
