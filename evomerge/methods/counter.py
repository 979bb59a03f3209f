"""Uniform numbers that are a function of (key, offset): nothing is stored, no order matters.

Random masks (DARE, DELLA) and dithered rounding ask the same entry for its number in every
candidate, on every machine, in whatever pieces a kernel walks a tensor. The mix is the two-round
32-bit finaliser ``lowbias32`` (Wellons 2018, "Prospecting for hash functions") over a Weyl
sequence, with a second half of the key between the rounds, so that streams of different keys are
not shifts of each other. It is written in int32 arithmetic that wraps, the same on CPU and CUDA.

Masks take 16 bits per entry, and two entries share a hash: entry ``i`` has half ``i & 1``, the
lower one first, of hash ``i >> 1``, as a signed number plus 2^15 (:func:`halves`).
"""

from __future__ import annotations

import dataclasses
import hashlib

import torch

WEYL = -1640531527  # 0x9E3779B9, the golden ratio, as a signed 32-bit number
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


def shifted(of: Key, start: int) -> Key:
    """The stream from its entry ``start`` on, as long as the next multiple of 2^32 is not reached.

    A kernel that walks a tensor in pieces counts from 0 in each.
    """
    first = (of.first + start * WEYL + (1 << 31)) % (1 << 32) - (1 << 31)
    high = (start >> 32) & 0xFFFFFFFF
    return Key(first, of.second ^ (high - (1 << 32) if high >> 31 else high))


def bits(of: Key, start: int, n: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """The stream's random bits for the entries ``start`` to ``start + n``.

    Returns:
        int32 of shape (n,): all 32 bits random.
    """
    offsets = torch.arange(start, start + n, dtype=torch.int64, device=device)
    low = offsets.to(torch.int32)  # wraps, as the products of the hash do
    high = (offsets >> 32).to(torch.int32)
    hash_(
        low,
        torch.empty_like(low),
        of.first,
        of.second ^ high if start + n > 1 << 32 else of.second,
    )
    return low


def hash_(
    x: torch.Tensor,
    spare: torch.Tensor,
    first: int | torch.Tensor,
    second: int | torch.Tensor,
) -> None:
    """The hash itself, in place on int32 offsets.

    Args:
        x: Offsets; overwritten with random bits.
        spare: int32 of the same shape, overwritten.
        first: :attr:`Key.first`.
        second: :attr:`Key.second`.
    """
    mix_(x.mul_(WEYL).add_(first), spare, second)


def mix_(x: torch.Tensor, spare: torch.Tensor, second: int | torch.Tensor) -> None:
    """What follows the Weyl sequence: rounds of the hash, in place.

    Args:
        x: ``WEYL * offset + first``; overwritten with random bits.
        spare: int32 of the same shape, overwritten.
        second: :attr:`Key.second`.
    """
    for shift, factor in ((16, _ROUND_1), (15, _ROUND_2)):
        x.bitwise_xor_(_shift_right(x, shift, spare)).mul_(factor)
        if factor == _ROUND_1:
            x.bitwise_xor_(second)
    x.bitwise_xor_(_shift_right(x, 16, spare))


def _shift_right(x: torch.Tensor, n: int, out: torch.Tensor) -> torch.Tensor:
    """Unsigned shift of signed numbers."""
    return torch.bitwise_right_shift(x, n, out=out).bitwise_and_((1 << (32 - n)) - 1)


def halves(of: Key, n: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """int32 of shape (n,), from 0 to 65,535: the 16-bit uniforms of the first ``n`` entries."""
    hashes = bits(of, 0, (n + 1) // 2, device)
    return (torch.stack([hashes << 16, hashes], dim=1).flatten()[:n] >> 16) + (1 << 15)


def uniforms(of: Key, start: int, n: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """fp32 of shape (n,), in [0, 1): multiples of 2^-24, for the entries ``start`` onwards."""
    return ((bits(of, start, n, device) >> 8) & 0xFFFFFF).float() * 2.0**-24
