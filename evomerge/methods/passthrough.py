"""One model, scaled: ``W = scale W_1``.

Source: mergekit's ``passthrough`` on whole models. Layers that are stacked, repeated or left out
are not a merge of tensors and are refused where mergekit's configurations are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from evomerge.methods.base import Basis, Parameter, Scalar, Sources
from evomerge.methods.kernels import weighted_sum


class Passthrough:
    """``W = scale W_1``; a base is not used."""

    name = "passthrough"
    needs_base = False
    n_experts: tuple[int, int | None] = (1, 1)
    parameters: Mapping[str, Parameter] = {
        "scale": Parameter(0.0, 2.0, 1.0, "factor of every weight; mergekit: 1 unless given"),
    }
    fixed: Mapping[str, Scalar] = {}

    def survey(self, tensors: Iterable[Sources], fixed: Mapping[str, Scalar]) -> None:
        """Nothing to survey."""

    def prepare(self, sources: Sources, survey: None, fixed: Mapping[str, Scalar]) -> Basis:
        """The model itself."""
        return Basis(tuple(sources.experts))

    def combine(
        self,
        out: torch.Tensor,
        basis: Basis,
        coefficients: Mapping[str, Sequence[float]],
        fixed: Mapping[str, Scalar],
    ) -> None:
        """Writes the scaled model."""
        weighted_sum(out, basis.tensors, coefficients["scale"])
