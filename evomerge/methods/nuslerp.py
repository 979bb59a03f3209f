"""NuSLERP: spherical interpolation by weights, of models or of their task vectors.

``t = w_2 / (w_1 + w_2)``, then slerp at t between the two tensors, or with ``task_vectors``
``W = W_0 + slerp(W_1 - W_0, W_2 - W_0; t)``. Angles are those of whole tensors
(``nuslerp_flatten``), of vectors along the last dimension (not flattened), or along the first
(``nuslerp_row_wise`` as well): mergekit's names.

Source: mergekit's ``nuslerp`` (github.com/arcee-ai/mergekit, docs/merge_methods.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from evomerge.errors import ConfigError
from evomerge.methods.arc import arc, cosine
from evomerge.methods.base import Basis, Parameter, Scalar, Sources
from evomerge.methods.inner_products import gram, grams_along
from evomerge.methods.kernels import weighted_sum
from evomerge.methods.parts import broadcast_sum


class NuSlerp:
    """``W`` on the arc between two tensors or two task vectors."""

    name = "nuslerp"
    needs_base = False
    n_experts: tuple[int, int | None] = (2, 2)
    parameters: Mapping[str, Parameter] = {
        "weight": Parameter(0.0, 1.0, 0.5, "the expert's share of the way along the arc"),
    }
    fixed: Mapping[str, Scalar] = {
        "task_vectors": False,
        "nuslerp_flatten": True,
        "nuslerp_row_wise": False,
    }

    def survey(self, tensors: Iterable[Sources], fixed: Mapping[str, Scalar]) -> None:
        """Nothing to survey."""

    def prepare(self, sources: Sources, survey: None, fixed: Mapping[str, Scalar]) -> Basis:
        """The sources themselves, and the cosine of the whole, or of every row or column."""
        experts = tuple(sources.experts)
        origin = sources.base if fixed["task_vectors"] else None
        if fixed["task_vectors"] and origin is None:
            raise ConfigError("nuslerp with task_vectors needs a base model; set models.base.")
        if fixed["nuslerp_flatten"] or experts[0].dim() < 2:
            cos = cosine(gram(experts, origin))
        else:
            cos = cosine(grams_along(experts, 0 if fixed["nuslerp_row_wise"] else -1, origin))
        return Basis(experts if origin is None else (origin, *experts), cos)

    def combine(
        self,
        out: torch.Tensor,
        basis: Basis,
        coefficients: Mapping[str, Sequence[float]],
        fixed: Mapping[str, Scalar],
    ) -> None:
        """Writes the merge; weights that sum to zero mean the middle, as in mergekit."""
        first, second = coefficients["weight"]
        total = first + second
        ends = arc(basis.extra, second / total if abs(total) >= 1e-6 else 0.5)
        weights = [1 - ends[0] - ends[1], *ends] if len(basis.tensors) == 3 else [*ends]
        if weights[0].dim():
            broadcast_sum(out, basis.tensors, weights)
        else:
            weighted_sum(out, basis.tensors, [float(w) for w in weights])
