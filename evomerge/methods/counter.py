"""Uniform numbers that are a function of (key, offset): nothing is stored, no order matters.

Random masks (DARE, DELLA) and dithered rounding ask the same entry for its number in every
candidate, on every machine, in whatever pieces a kernel walks a tensor. The mix is the two-round
32-bit finaliser ``lowbias32`` (Wellons 2018, "Prospecting for hash functions") over a Weyl
sequence, with a second half of the key between the rounds, so that streams of different keys are
not shifts of each other. It is written in int32 arithmetic that wraps, the same on CPU and CUDA.
"""

from __future__ import annotations

import dataclasses
import hashlib

import torch

_WEYL = -1640531527  # 0x9E3779B9, the golden ratio, as a signed 32-bit number
_ROUND_1 = 0x7FEB352D
_ROUND_2 = -2073254261  # 0x846CA68B


@dataclasses.dataclass(frozen=True)
class Key:
    """Names one stream of uniforms.

    Attributes:
        first: Signed 32-bit number that starts the sequence.
        second: Signed 32-bit number mixed in between the rounds.
    """

    first: int
    second: int


def key(*parts: str | int) -> Key:
    """The stream that belongs to these parts, for example (seed, expert's sha256, tensor name)."""
    text = "\x1f".join(str(p) for p in parts)
    digest = hashlib.sha256(text.encode()).digest()
    return Key(*(int.from_bytes(digest[i : i + 4], "little", signed=True) for i in (0, 4)))


def bits(of: Key, start: int, n: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """The stream's random bits for the entries ``start`` to ``start + n``.

    Returns:
        int32 of shape (n,): all 32 bits random.
    """
    offsets = torch.arange(start, start + n, dtype=torch.int64, device=device)
    low = offsets.to(torch.int32)  # wraps, as the product below does
    high = (offsets >> 32).to(torch.int32)
    return mix(low, of.first, of.second ^ high if start + n > 1 << 32 else of.second)


def mix(offset: torch.Tensor, first: int, second: int | torch.Tensor) -> torch.Tensor:
    """The hash itself, elementwise on int32 offsets: what a fused kernel calls."""
    x = offset * _WEYL + first
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * _ROUND_1 ^ second
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * _ROUND_2
    return x ^ ((x >> 16) & 0xFFFF)


def uniforms(of: Key, start: int, n: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """fp32 of shape (n,), in [0, 1): multiples of 2^-24, for the entries ``start`` onwards."""
    return ((bits(of, start, n, device) >> 8) & 0xFFFFFF).float() * 2.0**-24
