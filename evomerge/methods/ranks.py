"""Where each entry stands in the order of magnitudes: sorted once, thresholded at any density.

An entry's rank is a whole number below 65,535, so that both ends of an interval of ranks fit in
16 bits. Up to 65,535 entries the ranks are exact, beyond that a density is resolved to 1/65,535.
They are stored as signed numbers, counted from the middle, that floats are made of in one step.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_Array = npt.NDArray[Any]

LEVELS = (1 << 16) - 1
"""Number of distinct ranks."""

_AT_ONCE = 1 << 17  # entries: of several short rows, or of a piece of a long one
_STRETCHES = 32  # that the longest rows are sorted in; each is looked for in the whole row
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
    if rows * n > _AT_ONCE:
        _give_back()
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


def _give_back() -> None:
    """Returns freed memory to the system; else as much as a model may stay, between the ranks."""
    with contextlib.suppress(AttributeError, OSError):  # of a C library other than glibc
        ctypes.CDLL(None).malloc_trim(0)


def _rank_long(row: _Array, ranks: _Array, *, descending: bool) -> None:
    """One row, sorted in stretches of its magnitudes: memory for a piece instead of all keys."""
    pieces = [slice(start, start + _AT_ONCE) for start in range(0, len(row), _AT_ONCE)]
    counts = sum(np.bincount(row[p] >> _FINE, minlength=1 << (31 - _FINE)) for p in pieces)
    size = max(_AT_ONCE, len(row) // _STRETCHES)
    stretches = np.flatnonzero(np.diff(np.cumsum(counts) // size, prepend=-1))
    edges = [int(bin_) << _FINE for bin_ in stretches] + [_LARGEST]
    pairs = list(itertools.pairwise(edges))
    done = 0
    for low, high in reversed(pairs) if descending else pairs:
        found = [_between(row[p], low, high, p.start) for p in pieces]
        equal = sum(map(len, found)) > 2 * size and _all_equal(row[f] for f in found)
        for places in found if equal else [np.concatenate(found)]:
            numbers = row[places]
            order = _order(_LARGEST - numbers if descending else numbers)
            ranks[places[order]] = _levels(done, done + len(places), len(row))
            done += len(places)


def _between(numbers: _Array, low: int, high: int, start: int) -> _Array:
    """Where in a piece that begins at ``start`` numbers are in ``[low, high)``; int32."""
    places: _Array = np.flatnonzero((numbers >= low) & (numbers < high)).astype(np.int32)
    places += start
    return places


def _all_equal(parts: Iterable[_Array]) -> bool:
    """Whether there is one number only: weights that were not trained, in a long row."""
    return len({end for part in parts if len(part) for end in (part.min(), part.max())}) == 1


def _order(numbers: _Array) -> _Array:
    """A stable argsort of non-negative int32: by halves, whose sort is linear in their number."""
    first = np.argsort(numbers.astype(np.uint16), kind="stable")
    upper = (numbers >> 16).astype(np.uint16)[first]
    order: _Array = first[np.argsort(upper, kind="stable")]
    return order


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
    levels: _Array = np.arange(start, stop)
    levels *= LEVELS
    levels //= max(n, LEVELS)
    levels -= middle(n)
    return levels.astype(np.int16)
