"""Inner products of a tensor's sources, summed in float64 chunk by chunk.

Every norm and every angle that a merge of whole tensors needs is a function of the N x N Gram
matrix of its N sources, so it is taken once and a candidate costs a few scalars.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from evomerge.methods.parts import row_parts, wide_parts


def gram(
    tensors: Sequence[torch.Tensor], origin: torch.Tensor | None = None
) -> npt.NDArray[np.float64]:
    """Inner products of whole tensors.

    Args:
        tensors: N tensors of one shape.
        origin: Subtracted from each first: the base, where task vectors are meant.

    Returns:
        (N, N), symmetric.
    """
    n = len(tensors)
    found = torch.zeros((n, n), dtype=torch.float64)
    everyone = [*tensors] if origin is None else [*tensors, origin]
    for _, chunk in wide_parts(everyone, torch.float64):
        rows = torch.stack(chunk[:n])
        if origin is not None:
            rows -= chunk[n]
        found += (rows @ rows.T).cpu()
    return found.numpy()


def grams_along(
    tensors: Sequence[torch.Tensor], dim: int, origin: torch.Tensor | None = None
) -> torch.Tensor:
    """Inner products along one dimension: one Gram matrix per row (or per column).

    Args:
        tensors: N tensors of one shape, with two dimensions or more.
        dim: Dimension that is summed over: -1 for rows, 0 for columns.
        origin: Subtracted from each first.

    Returns:
        (N, N, *shape) float64, with 1 for the summed dimension.
    """
    n, first = len(tensors), tensors[0]
    shape = list(first.shape)
    shape[dim] = 1
    found = torch.zeros((n, n, *shape), dtype=torch.float64, device=first.device)
    for part in row_parts(first):
        wide = [t[part].double() for t in tensors]
        if origin is not None:
            wide = [t - origin[part].double() for t in wide]
        for i in range(n):
            for j in range(i + 1):
                value = (wide[i] * wide[j]).sum(dim, keepdim=True)
                if dim == 0:
                    found[i, j] += value
                else:
                    found[i, j, part] = value
                found[j, i] = found[i, j]
    return found.cpu()
