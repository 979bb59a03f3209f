"""Walking tensors piece by piece: what needs more than one number per source.

Pieces are small enough that a handful of temporaries of one stay in a core's cache, so nothing of
a tensor's size is allocated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

_PART = 1 << 16
"""Entries per piece: 256 KiB in fp32."""


def add_task_vectors(
    out: torch.Tensor,
    base: torch.Tensor,
    experts: Sequence[torch.Tensor],
    weights: Sequence[float],
) -> None:
    """Writes ``base + sum_i weights[i] * (experts[i] - base)`` into ``out``.

    The same as a :func:`~evomerge.methods.kernels.weighted_sum` with ``1 - sum(weights)`` for the
    base, and slower, but without cancellation where weights are large: for methods that blow up
    small task vectors.
    """
    flat = out.view(-1)
    for part, (origin, *others) in wide_parts([base, *experts], wide_dtype(out)):
        total = origin.clone()
        for other, weight in zip(others, weights, strict=True):
            total.add_(other - origin, alpha=weight)
        flat[part].copy_(total)


def broadcast_sum(
    out: torch.Tensor, tensors: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]
) -> None:
    """Writes a :func:`~evomerge.methods.kernels.weighted_sum` with weights per row or column.

    Args:
        out: At least one-dimensional, contiguous; written in place.
        tensors: n tensors of ``out``'s shape and device.
        weights: n tensors that broadcast against ``out``: as many dimensions, each 1 or full.
    """
    wide = wide_dtype(out)
    factors = [w.to(out.device, wide) for w in weights]
    for part in row_parts(out):
        total = torch.zeros_like(out[part], dtype=wide)
        for tensor, factor in zip(tensors, factors, strict=True):
            total.addcmul_(tensor[part].to(wide), factor[part] if len(factor) > 1 else factor)
        out[part].copy_(total)


def row_parts(tensor: torch.Tensor) -> Iterator[slice]:
    """Slices of the first dimension that hold about a chunk each."""
    rows = max(1, _chunk(tensor) * len(tensor) // max(1, tensor.numel()))
    return (slice(start, start + rows) for start in range(0, len(tensor), rows))


def wide_parts(
    tensors: Sequence[torch.Tensor], wide: torch.dtype = torch.float32
) -> Iterator[tuple[slice, list[torch.Tensor]]]:
    """Walks tensors of one shape in chunks.

    Args:
        tensors: Any shape, floating dtypes; not written to.
        wide: dtype of the chunks.

    Yields:
        The chunk's place in the flattened tensors, and a chunk of each: a view where the dtype
        fits, so it must not be written to.
    """
    flats = [t.reshape(-1) for t in tensors]
    size = _chunk(tensors[0])
    for start in range(0, flats[0].numel(), size):
        part = slice(start, start + size)
        yield part, [f[part].to(wide) for f in flats]


def wide_dtype(out: torch.Tensor) -> torch.dtype:
    """What a merge into ``out`` is computed in: fp32, or fp64 where ``out`` is fp64."""
    return torch.float64 if out.dtype == torch.float64 else torch.float32


def _chunk(tensor: torch.Tensor) -> int:
    return 1 << 24 if tensor.is_cuda else _PART
