"""Merging toy tensors with one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from evomerge.methods import METHODS, Basis, Sources


def prepared(
    name: str, base: torch.Tensor, experts: Sequence[torch.Tensor], tensor: str = "w", **fixed
) -> Basis:
    """The basis of a model that is one tensor."""
    chosen, given = METHODS[name], Sources(tensor, base, experts)
    settings = {**chosen.fixed, **fixed}
    return chosen.prepare(given, chosen.survey(iter([given]), settings), settings)


def merged(
    name: str,
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    values: Mapping[str, Sequence[float]],
    tensor: str = "w",
    **fixed,
) -> torch.Tensor:
    """The merge of a model that is one tensor, in the base's dtype."""
    out = torch.full_like(base, torch.nan)
    chosen = METHODS[name]
    basis = prepared(name, base, experts, tensor, **fixed)
    chosen.combine(out, basis, values, {**chosen.fixed, **fixed})
    return out


def toy(
    shape: Sequence[int], k: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A base and k experts whose task vectors are a tenth of it."""
    random = torch.Generator().manual_seed(seed)
    base = torch.randn(tuple(shape), generator=random, dtype=torch.float64)
    experts = [
        base + 0.1 * torch.randn(tuple(shape), generator=random, dtype=torch.float64)
        for _ in range(k)
    ]
    return base.to(dtype), [e.to(dtype) for e in experts]


def task_arithmetic(base, experts, weights):
    return base + sum(w * (e - base) for w, e in zip(weights, experts, strict=True))
