"""Weighted averaging of models.

``W = sum_k w_k W_k``, divided by ``sum_k w_k`` when ``normalize`` is on (the default).

Source: Wortsman et al. 2022, "Model soups" (arXiv:2203.05482); the normalised form is what
mergekit's ``linear`` computes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from evomerge.errors import ConfigError
from evomerge.methods.base import Basis, Parameter, Scalar, Sources
from evomerge.methods.kernels import weighted_sum


class Linear:
    """``W = sum_k w_k W_k / sum_k w_k``; no base model needed."""

    name = "linear"
    needs_base = False
    n_experts: tuple[int, int | None] = (1, None)
    parameters: Mapping[str, Parameter] = {
        "weight": Parameter(0.0, 1.0, 0.5, "share of the expert in the average"),
    }
    fixed: Mapping[str, Scalar] = {"normalize": True}

    def survey(self, tensors: Iterable[Sources], fixed: Mapping[str, Scalar]) -> None:
        """Nothing to survey."""

    def prepare(self, sources: Sources, survey: None, fixed: Mapping[str, Scalar]) -> Basis:
        """The experts themselves: no copy."""
        return Basis(tuple(sources.experts))

    def combine(
        self,
        out: torch.Tensor,
        basis: Basis,
        coefficients: Mapping[str, Sequence[float]],
        fixed: Mapping[str, Scalar],
    ) -> None:
        """Writes the average; raises ConfigError where normalised weights sum to zero."""
        weights = list(coefficients["weight"])
        if fixed.get("normalize", True):
            total = sum(weights)
            if abs(total) < 1e-6:
                raise ConfigError(
                    f"linear: the weights {weights} sum to {total:g} and cannot be normalised; "
                    "raise the lower bound of the search space, or set fixed.normalize to false."
                )
            weights = [w / total for w in weights]
        weighted_sum(out, basis.tensors, weights)
