"""A tensor that is another one plus a product of two thin matrices: what a LoRA adapter makes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch


@dataclasses.dataclass(frozen=True, eq=False)
class LowRank:
    """``base + left @ right``, never written out.

    Attributes:
        base: (rows, columns), any floating dtype; not written to.
        left: (rows, r) fp32.
        right: (r, columns) fp32.
    """

    base: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor


Source = torch.Tensor | LowRank


def expanded(
    tensors: Sequence[Source], weights: Sequence[float]
) -> tuple[list[torch.Tensor], list[float], list[tuple[float, LowRank]]]:
    """Terms of a weighted sum with the bases taken out of its low-rank terms.

    Returns:
        Dense tensors and their weights, the same memory once; weights and low-rank terms, whose
        products alone are left to be added.
    """
    dense: dict[tuple[int, torch.dtype], tuple[torch.Tensor, float]] = {}
    products = []
    for source, weight in zip(tensors, weights, strict=True):
        if isinstance(source, LowRank):
            products.append((weight, source))
        tensor = source.base if isinstance(source, LowRank) else source
        key = (tensor.data_ptr(), tensor.dtype)
        dense[key] = (tensor, dense[key][1] + weight if key in dense else weight)
    return [t for t, _ in dense.values()], [w for _, w in dense.values()], products


def stacked(products: Sequence[tuple[float, LowRank]]) -> tuple[torch.Tensor, torch.Tensor]:
    """``sum_i w_i left_i @ right_i`` as one product: (rows, R) and (R, columns), R all ranks."""
    left = torch.cat([weight * p.left for weight, p in products], dim=1)
    return left, torch.cat([p.right for _, p in products])
