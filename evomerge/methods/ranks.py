"""Where each entry stands in the order of magnitudes: sorted once, thresholded at any density.

An entry's rank is a whole number below 65,535, so that both ends of an interval of ranks fit in
16 bits. Up to 65,535 entries the ranks are exact, beyond that a density is resolved to 1/65,535.
They are stored as signed numbers, counted from the middle, that floats are made of in one step.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_Array = npt.NDArray[Any]

LEVELS = (1 << 16) - 1
"""Number of distinct ranks."""

_AT_ONCE = 1 << 20  # entries: of several short rows, or of a piece of a long one
_LARGEST = np.iinfo(np.int32).max
_FINE = 15  # bits of a magnitude that its bin of the histogram does not say


def ranked(magnitudes: torch.Tensor, *, descending: bool) -> torch.Tensor:
    """Ranks the entries of every row by magnitude.

    Args:
        magnitudes: (rows, n) non-negative fp32 on the CPU.
        descending: Whether the largest entry of a row has rank 0, or the smallest.

    Returns:
        int16 of shape (rows, n): the ranks less :func:`middle`.
        Entries of equal magnitude are ranked by position, so that the ranks are the same on every
        machine.
    """
    # A magnitude's bits sort like the number.
    numbers = magnitudes.contiguous().view(torch.int32).numpy()
    rows, n = numbers.shape
    ranks = np.empty((rows, n), dtype=np.int16)
    if n > _AT_ONCE:
        for row, found in zip(numbers, ranks, strict=True):
            _rank_long(row, found, descending=descending)
    else:
        step = max(1, _AT_ONCE // max(1, n))
        levels = _levels(0, n, n)
        for start in range(0, rows, step):
            keys = _keys(numbers[start : start + step], np.arange(n), descending=descending)
            row = np.arange(len(keys))[:, None]
            keys.sort(axis=1)
            ranks[start + row, keys & 0xFFFFFFFF] = levels
    return torch.from_numpy(ranks)


def middle(n: int) -> int:
    """The rank among ``n`` entries that is stored as 0."""
    return (min(n, LEVELS) + 1) // 2


def ranked_in(order: torch.Tensor) -> torch.Tensor:
    """The ranks of entries that somebody else sorted.

    Args:
        order: (n,) int64 on the CPU: the entry of rank 0, the next one, ...

    Returns:
        (n,) int16, as those of :func:`ranked`.
    """
    ranks = np.empty(len(order), dtype=np.int16)
    ranks[order.numpy()] = _levels(0, len(order), len(order))
    return torch.from_numpy(ranks)


def _rank_long(row: _Array, ranks: _Array, *, descending: bool) -> None:
    """One row, sorted in stretches of its magnitudes: memory for a piece instead of all keys."""
    pieces = [slice(start, start + _AT_ONCE) for start in range(0, len(row), _AT_ONCE)]
    counts = sum(np.bincount(row[p] >> _FINE, minlength=1 << (31 - _FINE)) for p in pieces)
    stretches = np.flatnonzero(np.diff(np.cumsum(counts) // _AT_ONCE, prepend=-1))
    edges = [int(bin_) << _FINE for bin_ in stretches] + [_LARGEST]
    pairs = list(itertools.pairwise(edges))
    done = 0
    for low, high in reversed(pairs) if descending else pairs:
        found = [np.flatnonzero((row[p] >= low) & (row[p] < high)) + p.start for p in pieces]
        places = np.concatenate(found)
        keys = _keys(row[places], places, descending=descending)
        keys.sort()
        keys &= 0xFFFFFFFF
        ranks[keys] = _levels(done, done + len(keys), len(row))
        done += len(keys)


def _keys(numbers: _Array, places: _Array, *, descending: bool) -> _Array:
    """With their places below them the keys are unique, and a plain sort is a stable one."""
    keys = numbers.astype(np.int64)
    if descending:
        np.subtract(_LARGEST, keys, out=keys)
    keys <<= 32
    keys |= places
    return keys


def _levels(start: int, stop: int, n: int) -> _Array:
    """The ranks of the entries that come in these places among n, as they are stored."""
    levels: _Array = np.arange(start, stop) * LEVELS // max(n, LEVELS) - middle(n)
    return levels
