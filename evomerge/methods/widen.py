"""WIDEN: columns weighed by how far an expert moved their length and their direction.

A matrix's column c has the length ``m_c`` and the direction ``d_c``. Expert i moved them by
``|m_c,i - m_c,0|`` and ``1 - cos(d_c,i, d_c,0)``. Either is ranked over the columns of that
expert (0 to (n - 1) / n); the score of a rank is its softmax over the experts, or ``calibration``
where the rank exceeds ``ratio`` times the mean rank. With ``s_i`` the mean of both scores
``W = W_0 + sum_i w_i s_i tau_i``; a vector's entries are scored by ``|tau_i|`` itself. A negative
ratio with calibration 1 is task arithmetic.

Columns are inputs: of a table of tokens or positions they are its rows, as in the released code.
Convolutions are flattened to (out, rest). Scores do not depend on the weights, so the merge is
linear in them.

Cost: three experts of 768 x 3072 take 0.1 s on one core, once; the directions take as many bytes
as the experts.

Source: Yu et al. 2024, "Extend Model Merging from Fine-Tuned to Pre-Trained Large Language Models
via Weight Disentanglement" (arXiv:2408.03092); github.com/yule-BUAA/MergeLLM,
``widen_merging`` (``ratio``: above_average_value_ratio, ``calibration``: score_calibration_value).
Differences: the released code knows no weights; it takes only ``model.embed_tokens`` for a table
of tokens; a column of zeros has no direction there (NaN), here it moved fully or not at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch

from evomerge.methods import directions
from evomerge.methods.base import Basis, Parameter, Scalar, Sources
from evomerge.methods.inner_products import grams_along

_TOKENS = r"(^|\.)(\w*embed_tokens|embed_in|wte|wpe|shared|word_embeddings)\.\w+$"
"""Names of tables with a row per token or position."""


class Widen(directions.OnDirections):
    """``W = W_0 + sum_i w_i s_i tau_i``."""

    name = "widen"
    parameters: Mapping[str, Parameter] = {
        "weight": Parameter(0.0, 1.5, 1.0, "scale of the expert's scored task vector"),
    }
    fixed: Mapping[str, Scalar] = {
        "ratio": 1.0,  # of the mean rank, above which a column is important; 0.5 to 2
        "calibration": 1.0,  # score of an important column; 0 to 1.5
    }

    def survey(self, tensors: Iterable[Sources], fixed: Mapping[str, Scalar]) -> None:
        """Nothing to survey."""

    def prepare(self, sources: Sources, survey: None, fixed: Mapping[str, Scalar]) -> Basis:
        """Base and the scored task vectors."""
        base, experts = directions.base_of(sources, self.name), sources.experts
        ratio, calibration = float(fixed["ratio"]), float(fixed["calibration"])
        if base.numel() == 0:
            return directions.plain(sources, self.name)
        if base.ndim < 2:
            deltas = torch.stack(directions.task_vectors(sources, self.name))
            scores = _scores(deltas.reshape(len(deltas), -1).abs(), ratio, calibration)
            return directions.prepared(sources, self.name, [*(deltas * scores.view_as(deltas))])
        dim = -1 if re.search(_TOKENS, sources.name) else 0
        grams = grams_along([t.flatten(1) for t in (base, *experts)], dim)
        score = torch.zeros(len(experts), *grams.shape[2:], dtype=torch.float64)
        for moved in _moved(grams):
            ranks = _ranks(moved.flatten(1))
            score += _scores(ranks, ratio, calibration).view_as(score) / 2
        return directions.broadcast(sources, self.name, score)


def _moved(grams: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """By how much each column's length and direction changed.

    Args:
        grams: (1 + K, 1 + K, ...) inner products of the base's and the experts' columns.

    Returns:
        Two of (K, ...).
    """
    norms = grams.diagonal(dim1=0, dim2=1).movedim(-1, 0).sqrt()
    before, after = norms[:1], norms[1:]
    lengths, product = (after - before).abs(), before * after
    cosines = grams[0, 1:] / torch.where(product > 0, product, 1.0)
    gone = torch.where(lengths > 0, 1.0, 0.0).double()
    return lengths, torch.where(product > 0, 1.0 - cosines, gone)


def _ranks(moved: torch.Tensor) -> torch.Tensor:
    """(K, n) place in the row's ascending order, as a share; equals in order of position."""
    n = moved.shape[1]
    order = moved.argsort(dim=1, stable=True)
    places = torch.arange(n, dtype=moved.dtype, device=moved.device) / n
    return torch.empty_like(moved).scatter_(1, order, places.expand_as(moved))


def _scores(ranks: torch.Tensor, ratio: float, calibration: float) -> torch.Tensor:
    """(K, n) softmax over the experts, or ``calibration`` where the rank stands out."""
    important = ranks > ranks.mean(1, keepdim=True) * ratio
    return torch.where(important, calibration, ranks.softmax(0))
