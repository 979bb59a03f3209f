"""Task arithmetic: add scaled task vectors to the base.

``W = W_0 + sum_k w_k (W_k - W_0) = (1 - sum_k w_k) W_0 + sum_k w_k W_k``

Source: Ilharco et al. 2023, "Editing models with task arithmetic" (arXiv:2212.04089). The second
form needs no stored task vectors: the mapped checkpoints are the basis.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from evomerge.errors import ConfigError
from evomerge.methods.base import Basis, Parameter, Scalar, Sources
from evomerge.methods.kernels import weighted_sum


class TaskArithmetic:
    """``W = W_0 + sum_k w_k (W_k - W_0)``."""

    name = "task_arithmetic"
    needs_base = True
    n_experts: tuple[int, int | None] = (1, None)
    parameters: Mapping[str, Parameter] = {
        "weight": Parameter(0.0, 1.5, 0.5, "scale of the expert's task vector"),
    }
    fixed: Mapping[str, Scalar] = {}

    def survey(self, tensors: Iterable[Sources], fixed: Mapping[str, Scalar]) -> None:
        """Nothing to survey."""

    def prepare(self, sources: Sources, survey: None, fixed: Mapping[str, Scalar]) -> Basis:
        """Base and experts themselves: no copy."""
        if sources.base is None:
            raise ConfigError("task_arithmetic needs a base model; set models.base.")
        return Basis((sources.base, *sources.experts))

    def combine(
        self,
        out: torch.Tensor,
        basis: Basis,
        coefficients: Mapping[str, Sequence[float]],
        fixed: Mapping[str, Scalar],
    ) -> None:
        """Writes the merge."""
        weights = coefficients["weight"]
        weighted_sum(out, basis.tensors, [1.0 - sum(weights), *weights])
