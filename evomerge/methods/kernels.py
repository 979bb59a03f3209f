"""In-place combination of tensors at the speed of memory, accumulated in fp32.

On the CPU a tensor is walked in pieces that stay in the cache; what a piece needs beside its
sources lies there too, so nothing of a tensor's size is ever allocated.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from evomerge.methods import compiled
from evomerge.methods.lanes import Buffers, Lanes
from evomerge.methods.low_rank import Source, expanded, stacked
from evomerge.methods.parts import wide_dtype

CHUNK = 1 << 18
"""Entries of an fp32 sum that is taken at once: 1 MiB, a core's own cache."""

PIECE = 1 << 17
"""Entries per step of an eager elementwise function: long enough to hide the calls' overhead."""

_LONG_PIECE = 1 << 28  # a divisor of 2^32, for counter.shifted, and within int32


def weighted_sum(out: torch.Tensor, tensors: Sequence[Source], weights: Sequence[float]) -> None:
    """Writes ``sum_i weights[i] * tensors[i]`` into ``out``.

    Products and sums are taken in fp32 (fp64 where ``out`` is fp64) and rounded once, to nearest.

    Args:
        out: Any shape, floating dtype and device, contiguous; written in place.
        tensors: n tensors of ``out``'s shape and device, any floating dtype; not written to. Of a
            low-rank one the factors are multiplied, with those of all others at once.
        weights: n finite numbers; a tensor whose weight is 0 is not read.
    """
    dense, numbers, products = expanded(tensors, weights)
    products = [(w, p) for w, p in products if w != 0.0]
    if not products:
        _dense_sum(out, dense, numbers)
        return
    left, right = (f.to(wide_dtype(out)) for f in stacked(products))
    rows = max(1, out.numel() if out.is_cuda else CHUNK // max(1, out.shape[1]))
    for start in range(0, len(out), rows):
        part = slice(start, start + rows)
        target = out[part]
        total = target if out.dtype == left.dtype else torch.empty_like(target, dtype=left.dtype)
        _dense_sum(total, [t[part] for t in dense], numbers)
        total.addmm_(left[part], right)
        if total is not target:
            target.copy_(total)


def _dense_sum(
    out: torch.Tensor, tensors: Sequence[torch.Tensor], weights: Sequence[float]
) -> None:
    """A weighted sum of dense tensors, as torch would take it in the wide dtype."""
    terms = [(t, float(w)) for t, w in zip(tensors, weights, strict=True) if w != 0.0]
    if not terms:
        out.zero_()
        return
    kept = [t for t, _ in terms]
    numbers = [w for _, w in terms]
    wide = wide_dtype(out)
    macros = {"LINEAR": 1, "K": len(kept)}
    if out.dtype != wide or any(t.dtype != wide for t in kept):
        piecewise(macros, _sum_piece, out, kept, numbers)
        return
    fused = None if out.is_cuda else macros | {"FUSED": _fuses()}
    piecewise(fused, _sum_in_place, out, kept, numbers, size=CHUNK)


def piecewise(
    macros: Mapping[str, int] | None,
    piece: compiled.Piece,
    out: torch.Tensor,
    tensors: Sequence[torch.Tensor],
    numbers: Sequence[float],
    *,
    whole: Callable[[int], Sequence[int]] | None = None,
    size: int = PIECE,
) -> None:
    """Runs an elementwise function over tensors, compiled where that has paid by now.

    Args:
        macros: The function in the terms of ``native.c``, with everything that it depends on
            beside its arguments; None for one that is never compiled.
        piece: See :data:`evomerge.methods.compiled.Piece`.
        out: Any shape, contiguous; written.
        tensors: As many entries as ``out``, contiguous, on its device.
        numbers: Its floats.
        whole: From the first entry of a piece to its integers; None where it takes none.
        size: Entries per step of the eager form; a power of two above 1.
    """
    integers = whole or (lambda _: ())
    first = integers(0)
    if macros is not None:
        program = compiled.Program(macros, piece, len(numbers), len(first), wide_dtype(out))
        run = compiled.ready(program, out, tensors)
        if run is not None:
            for start, (target, *sources) in _pieces((out, *tensors), _LONG_PIECE):
                run(target, sources, numbers, integers(start) if start else first)
            return
    size = _LONG_PIECE if out.is_cuda else size
    buffers = Buffers(min(size, out.numel()), out.device)
    flats = [t.detach().reshape(-1) for t in (out, *tensors)]
    for start, (target, *sources) in _pieces(flats, size):
        buffers.restart(target.numel())
        piece(target, sources, numbers, integers(start) if start else first, buffers)


def _pieces(
    tensors: Sequence[torch.Tensor], size: int
) -> Iterator[tuple[int, Sequence[torch.Tensor]]]:
    """First entry and pieces: tensors as they are where they fit, else flat ones."""
    if tensors[0].numel() <= size:
        yield 0, tensors
        return
    flats = [torch.split(t.reshape(-1), size) for t in tensors]
    for i, pieces in enumerate(zip(*flats, strict=True)):
        yield i * size, pieces


@functools.cache
def _fuses() -> bool:
    """Whether torch adds a product without rounding it first, which hangs on the CPU."""
    number = 1 + 2.0**-12
    product = torch.full((64,), number)
    rounded = -float(product[0] * product[0])
    return bool((torch.full((64,), rounded).add_(product, alpha=number) != 0).all())


def _sum_in_place(
    out: torch.Tensor,
    tensors: Sequence[torch.Tensor],
    numbers: Any,
    whole: Any,  # noqa: ARG001 - every piece is called alike
    lanes: Lanes,  # noqa: ARG001
) -> None:
    """The sum where all dtypes are equal: a piece of out stays in the cache as terms are added."""
    torch.mul(tensors[0], numbers[0], out=out)
    for tensor, weight in zip(tensors[1:], numbers[1:], strict=True):
        out.add_(tensor, alpha=weight)


def _sum_piece(
    out: torch.Tensor,
    tensors: Sequence[torch.Tensor],
    numbers: Any,
    whole: Any,  # noqa: ARG001 - every piece is called alike
    lanes: Lanes,
) -> None:
    wide = wide_dtype(out)
    total, term = lanes.spare(wide), lanes.spare(wide)
    total.copy_(tensors[0]).mul_(numbers[0])
    for tensor, weight in zip(tensors[1:], numbers[1:], strict=True):
        total.add_(term.copy_(tensor).mul_(weight))
    out.copy_(total)
