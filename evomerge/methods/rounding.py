"""Rounding a merge to bfloat16 or float16: to nearest, or with a fixed dither.

Where task vectors are small beside the weights (a few units in the last place), rounding to
nearest turns a coefficient into a step: everything below one half is undone, everything above is
done in full. Dithered rounding goes up with the probability of the distance to the number below,
so the mean of many entries is the merge that was asked for. The dither is a function of (tensor
name, offset): the same for every candidate, so that the landscape of a search stays smooth, and
the same on every machine.

Source: stochastic rounding, Croci et al. 2022 (doi:10.1098/rsos.211631), with the random numbers
of :mod:`evomerge.methods.counter`.
"""

from __future__ import annotations

import torch

from evomerge.methods.counter import Key, bits, key, uniforms

ROUNDINGS = ("nearest", "dither")
NARROW = (torch.bfloat16, torch.float16)
"""What fp32 sums are rounded to; wider outputs hold them as they are."""

_CHUNK = 1 << 17
"""Entries at a time: what the hash keeps beside them stays in a core's cache."""
_EXPONENT = 0x7F800000
_KEPT = -65536  # 0xFFFF0000: the half of an fp32 number that is a bfloat16
_SMALLEST_HALF = 2.0**-24


def dither_into(out: torch.Tensor, exact: torch.Tensor, name: str) -> None:
    """Rounds ``exact`` to one of the two neighbours in ``out``'s dtype, unbiased.

    What ``out`` can hold exactly stays as it is. Infinities, NaN and numbers beyond the largest
    finite one are rounded to nearest.

    Args:
        out: bfloat16 or float16, contiguous; written in place.
        exact: float32 of ``out``'s shape and device.
        name: The tensor's name, which the dither belongs to.
    """
    of = key("dither", name)
    target, source = out.view(-1), exact.reshape(-1)
    n = target.numel()
    size = max(1, n if out.is_cuda else min(_CHUNK, n))
    largest = torch.finfo(out.dtype).max
    for start in range(0, n, size):
        part = source[start : start + size]
        rounded = (_bfloat16 if out.dtype == torch.bfloat16 else _half)(part, of, start)
        target[start : start + size] = torch.where(part.abs() <= largest, rounded, part)


def _bfloat16(part: torch.Tensor, of: Key, start: int) -> torch.Tensor:
    """Adds 16 random bits below the kept ones and cuts: a carry is the step up in magnitude."""
    noise = bits(of, start, part.numel(), part.device) & 0xFFFF
    return ((part.view(torch.int32) + noise) & _KEPT).view(torch.float32)


def _half(part: torch.Tensor, of: Key, start: int) -> torch.Tensor:
    """Counts in units of float16's last place, which is fixed below its smallest normal."""
    power = (part.view(torch.int32) & _EXPONENT).view(torch.float32)
    unit = (power * 2.0**-10).clamp(min=_SMALLEST_HALF)
    count = part.abs() / unit
    whole = count.floor()
    up = uniforms(of, start, part.numel(), part.device) < count - whole
    return ((whole + up) * unit).copysign(part)
