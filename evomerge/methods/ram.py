"""RAM and RAM+ (tensor-local): task vectors averaged over those that changed an entry.

With ``delta_k = W_k - W_0``, ``m_k = |delta_k| > epsilon`` and ``n = sum_k m_k`` per entry,
``W = W_0 + sum_k w_k f_k m_k delta_k`` where ``f_k = 1 / n`` on entries that several experts
changed and ``f_k = l_k`` on those that only expert k changed. RAM has ``l_k = 1``; RAM+ has
``l_k = 1 + r min(shared_k / unique_k, alpha)`` from the numbers of such entries in the tensor.

Source: "Reinforced Agent Merging" (arXiv:2601.13572), as in mergekit's ``ram`` and ``ramplus_tl``,
which have no weights (here: 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from evomerge.errors import ConfigError
from evomerge.methods.base import Basis, Parameter, Scalar, Sources
from evomerge.methods.parts import wide_dtype, wide_parts

_WEIGHT = Parameter(0.0, 2.0, 1.0, "scale of the expert's task vector; mergekit: 1")


class Ram:
    """Shared changes averaged, unique changes kept whole."""

    name = "ram"
    needs_base = True
    n_experts: tuple[int, int | None] = (1, None)
    parameters: Mapping[str, Parameter] = {"weight": _WEIGHT}
    fixed: Mapping[str, Scalar] = {"epsilon": 1e-5}

    def survey(self, tensors: Iterable[Sources], fixed: Mapping[str, Scalar]) -> None:
        """Nothing to survey."""

    def prepare(self, sources: Sources, survey: None, fixed: Mapping[str, Scalar]) -> Basis:
        """The sources themselves."""
        return Basis(_checked(self.name, sources))

    def combine(
        self,
        out: torch.Tensor,
        basis: Basis,
        coefficients: Mapping[str, Sequence[float]],
        fixed: Mapping[str, Scalar],
    ) -> None:
        """Writes the merge."""
        weights = coefficients["weight"]
        _write(out, basis.tensors, weights, weights, float(fixed["epsilon"]))


class RamPlus:
    """RAM with unique changes amplified by how much of an expert is shared."""

    name = "ramplus_tl"
    needs_base = True
    n_experts: tuple[int, int | None] = (1, None)
    parameters: Mapping[str, Parameter] = {
        "weight": _WEIGHT,
        "r": Parameter(0.0, 1.0, 0.1, "how strongly unique changes are amplified", shared=True),
        "alpha": Parameter(0.0, 1.0, 0.2, "cap of the shared/unique ratio", shared=True),
    }
    fixed: Mapping[str, Scalar] = {"epsilon": 1e-5}

    def survey(self, tensors: Iterable[Sources], fixed: Mapping[str, Scalar]) -> None:
        """Nothing to survey."""

    def prepare(self, sources: Sources, survey: None, fixed: Mapping[str, Scalar]) -> Basis:
        """The sources themselves, and every expert's ratio of shared to unique entries."""
        tensors = _checked(self.name, sources)
        epsilon = float(fixed["epsilon"])
        shared = unique = torch.zeros(len(tensors) - 1, dtype=torch.float64)
        for _, (base, *experts) in wide_parts(tensors):
            changed = torch.stack([(e - base).abs() > epsilon for e in experts])
            alone = changed & (changed.sum(0) == 1)
            unique = unique + alone.sum(1).cpu()
            shared = shared + (changed.sum(1) - alone.sum(1)).cpu()
        return Basis(tensors, (shared / unique.clamp(min=1e-5)).tolist())

    def combine(
        self,
        out: torch.Tensor,
        basis: Basis,
        coefficients: Mapping[str, Sequence[float]],
        fixed: Mapping[str, Scalar],
    ) -> None:
        """Writes the merge."""
        r, alpha = coefficients["r"][0], coefficients["alpha"][0]
        weights = coefficients["weight"]
        alone = [
            w * (1 + r * min(ratio, alpha)) for w, ratio in zip(weights, basis.extra, strict=True)
        ]
        _write(out, basis.tensors, weights, alone, float(fixed["epsilon"]))


def _checked(name: str, sources: Sources) -> tuple[torch.Tensor, ...]:
    if sources.base is None:
        raise ConfigError(f"{name} needs a base model; set models.base.")
    return (sources.base, *sources.experts)


def _write(
    out: torch.Tensor,
    tensors: Sequence[torch.Tensor],
    weights: Sequence[float],
    alone: Sequence[float],
    epsilon: float,
) -> None:
    """Adds every expert's share to the base, chunk by chunk.

    Args:
        out: Written in place.
        tensors: The base and K experts.
        weights: K factors, divided by the number of experts that changed an entry.
        alone: K factors where no other expert changed it.
        epsilon: Least change that counts.
    """
    flat = out.view(-1)
    for part, (base, *experts) in wide_parts(tensors, wide_dtype(out)):
        deltas = [torch.hardshrink(e - base, epsilon) for e in experts]
        count = torch.zeros_like(base)
        for delta in deltas:
            sign = delta.sign()
            count.addcmul_(sign, sign)
        unique = (count == 1).to(count.dtype)
        share = count.clamp_(min=1).reciprocal_()
        total = base.clone()
        for delta, weight, own in zip(deltas, weights, alone, strict=True):
            total.addcmul_(delta, share, value=weight)
            if own != weight:
                total.addcmul_(delta, unique, value=own - weight)
        flat[part].copy_(total)
