"""In-place combination of tensors at the speed of memory, accumulated in fp32."""

from __future__ import annotations

from collections.abc import Sequence

import torch

CHUNK = 1 << 20
"""Entries of fp32 scratch (4 MiB): large enough to amortise the call, small enough for a cache."""


def weighted_sum(
    out: torch.Tensor, tensors: Sequence[torch.Tensor], weights: Sequence[float]
) -> None:
    """Writes ``sum_i weights[i] * tensors[i]`` into ``out``.

    Products and sums are taken in fp32 (fp64 where ``out`` is fp64) and rounded once, to nearest.

    Args:
        out: Any shape, floating dtype and device, contiguous; written in place.
        tensors: n tensors of ``out``'s shape and device, any floating dtype; not written to.
        weights: n finite numbers; a tensor whose weight is 0 is not read.
    """
    terms = [(t, float(w)) for t, w in zip(tensors, weights, strict=True) if w != 0.0]
    wide = torch.float64 if out.dtype == torch.float64 else torch.float32
    if not terms:
        out.zero_()
        return
    flat = out.view(-1)
    flats = [(t.reshape(-1), w) for t, w in terms]
    n = flat.numel()
    size = max(1, n if out.is_cuda else min(CHUNK, n))
    direct = out.dtype == wide and all(t.dtype == wide for t, _ in terms)
    total, scratch = torch.empty((2, 0 if direct else size), dtype=wide, device=out.device)
    for start in range(0, n, size):
        stop = min(start + size, n)
        if direct:  # a chunk of out stays in the cache while all terms are added to it
            acc = flat[start:stop]
            torch.mul(flats[0][0][start:stop], flats[0][1], out=acc)
            for tensor, weight in flats[1:]:
                acc.add_(tensor[start:stop], alpha=weight)
            continue
        acc, part = total[: stop - start], scratch[: stop - start]
        acc.zero_()
        for tensor, weight in flats:
            part.copy_(tensor[start:stop])
            acc.add_(part, alpha=weight)
        flat[start:stop].copy_(acc)
