"""Isotropic merging in the common subspace (Iso-C): the task vectors' sum, all directions equal.

For a matrix ``sum_i tau_i = U S V^T`` and ``W = W_0 + scale * mean(S) U V^T``: weak directions of
the sum, where the small tasks live, are lifted to the strength of the strong ones. Everything else
(norms, biases, convolutions, and by default embeddings and heads) is merged by the mean.

``scale`` is shared by the experts: weights within the sum would cost a decomposition per
candidate. tsv has a weight per expert at no such price.

Cost: three experts of 768 x 3072 take 0.4 s on one core, once, and 170 MiB while they do;
the direction takes as many bytes as one expert.

Source: Marczak et al. 2025, "No Task Left Behind: Isotropic Model Merging with Common and
Task-Specific Subspaces" (arXiv:2502.04959), Iso-C; FusionBench's ``iso_c``. Difference:
directions that the sum does not have (singular values below 1e-6 of the largest) stay zero, where
the released code takes whatever vectors the decomposition returns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from evomerge.methods import directions
from evomerge.methods.base import Basis, Parameter, Scalar, Sources
from evomerge.methods.spectrum import singular_vectors


class IsotropicCommon:
    """``W = W_0 + scale * mean(S) U V^T`` with ``U S V^T`` the sum of the task vectors."""

    name = "iso_c"
    needs_base = True
    n_experts: tuple[int, int | None] = (1, None)
    parameters: Mapping[str, Parameter] = {
        "scale": Parameter(0.0, 2.0, 1.0, "scale of the isotropic task vector", shared=True),
    }
    fixed: Mapping[str, Scalar] = {
        "embeddings": False,  # whether embeddings and heads are taken like any matrix
    }

    def survey(self, tensors: Iterable[Sources], fixed: Mapping[str, Scalar]) -> None:
        """Nothing to survey."""

    def prepare(self, sources: Sources, survey: None, fixed: Mapping[str, Scalar]) -> Basis:
        """Base and the isotropic direction."""
        if not directions.is_matrix(sources, fixed):
            return directions.plain(sources, self.name, 1 / len(sources.experts))
        total = torch.zeros(())
        for delta in directions.task_vectors(sources, self.name):
            total = total + delta
        left, values, right = singular_vectors(total)
        mean = values.sum() / min(total.shape)
        return directions.prepared(sources, self.name, [left @ right.T * mean])

    def combine(
        self,
        out: torch.Tensor,
        basis: Basis,
        coefficients: Mapping[str, Sequence[float]],
        fixed: Mapping[str, Scalar],
    ) -> None:
        """Writes the merge."""
        directions.combine(out, basis, [*coefficients["scale"]] * (len(basis.tensors) - 1))
