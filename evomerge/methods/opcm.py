"""OPCM: experts join one after the other, each cleaned of the directions that are taken.

In the order of ``models.experts``, with ``U S V^T`` the merge of the experts before (all with
weight 1), expert i's task vector in that frame, ``C = U^T tau_i V``, loses its diagonal and its
leading block of the r singular directions that hold the share ``alpha`` of their sum:
``D_i = U C' V^T``, ``D_1 = tau_1``. What is left is orthogonal to the merge before it, and
``W = W_0 + c sum_i w_i D_i``, where c gives the merge at weight 1 the mean length of the task
vectors. The directions do not depend on the weights. Another order is another merge: reorder the
experts.

Everything else (norms, biases, convolutions, and by default embeddings and heads) is not cleaned,
only brought to the mean length.

Cost: three experts of 768 x 3072 take 1.2 s on one core, once, and 270 MiB while they do; the
directions take as many bytes as the experts.

Source: Tang et al. 2025, "Merging Models on the Fly Without Retraining: A Sequential Approach to
Scalable Continual Model Merging" (arXiv:2501.09522); FusionBench's ``opcm``.
Differences: the released code brings the whole model to the mean length, with one c, here every
tensor is (a survey of the merged model's length would take every decomposition twice); it clears
the diagonal of vectors whose singular value is zero too, which are the solver's choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from evomerge.errors import ConfigError
from evomerge.methods import directions
from evomerge.methods.base import Basis, Parameter, Scalar, Sources
from evomerge.methods.inner_products import gram
from evomerge.methods.spectrum import singular_vectors


class Opcm(directions.OnDirections):
    """``W = W_0 + c sum_i w_i D_i``, every ``D_i`` orthogonal to the sum before it."""

    name = "opcm"
    parameters: Mapping[str, Parameter] = {
        "weight": Parameter(0.0, 2.0, 1.0, "scale of the expert's cleaned task vector"),
    }
    fixed: Mapping[str, Scalar] = {
        "alpha": 0.5,  # share of the singular values whose directions are closed to newcomers
        "embeddings": False,  # whether embeddings and heads are taken like any matrix
    }

    def survey(self, tensors: Iterable[Sources], fixed: Mapping[str, Scalar]) -> None:
        """Checks the settings.

        Raises:
            ConfigError: An alpha outside [0, 1].
        """
        if not 0.0 <= float(fixed["alpha"]) <= 1.0:
            raise ConfigError(
                f"fixed.alpha: expected a share of the singular values in [0, 1], got "
                f"{fixed['alpha']}."
            )

    def prepare(self, sources: Sources, survey: None, fixed: Mapping[str, Scalar]) -> Basis:
        """Base and the cleaned task vectors."""
        base = directions.base_of(sources, self.name)
        products = gram(sources.experts, base)
        length = float((products.diagonal().clip(min=0.0) ** 0.5).mean())
        if not directions.is_matrix(sources, fixed):
            total = float(max(products.sum(), 0.0) ** 0.5)
            return directions.plain(sources, self.name, _ratio(length, total))
        cleaned: list[torch.Tensor] = []
        total_delta = torch.zeros(base.shape, dtype=torch.float64, device=base.device)
        for delta in directions.task_vectors(sources, self.name):
            cleaned.append(_clean(delta, total_delta, float(fixed["alpha"])))
            total_delta += cleaned[-1]
        scale = _ratio(length, float(total_delta.norm()))
        return directions.prepared(sources, self.name, [d * scale for d in cleaned])


def _clean(delta: torch.Tensor, before: torch.Tensor, alpha: float) -> torch.Tensor:
    """Takes the leading block and the diagonal, in the singular vectors of ``before``, out."""
    left, values, right = singular_vectors(before)
    if len(values) == 0:
        return delta
    r = int((values.cumsum(0) / values.sum() > alpha).double().argmax())
    block = left[:, :r].T @ delta @ right[:, :r]
    rest_left, rest_right = left[:, r:], right[:, r:]
    diagonal = (rest_left * (delta @ rest_right)).sum(0)
    return delta - left[:, :r] @ block @ right[:, :r].T - (rest_left * diagonal) @ rest_right.T


def _ratio(wanted: float, found: float) -> float:
    """``wanted / found``; 0 where task vectors cancel, since no length can be given to nothing."""
    return wanted / found if found > 1e-12 * wanted and found > 0.0 else 0.0
