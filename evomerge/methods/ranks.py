"""Where each entry stands in the order of magnitudes: sorted once, thresholded at any density.

An entry's rank is a whole number below 65,536, stored as two bytes in two planes (high and low),
since a vectorising compiler reads bytes but not 16-bit integers. Up to 65,536 entries the ranks
are exact, beyond that a density is resolved to 1/65,536.
"""

from __future__ import annotations

import numpy as np
import torch

LEVELS = 1 << 16
"""Number of distinct ranks."""

_AT_ONCE = 1 << 20  # entries: of several short rows, or of a piece of a long one


def rank_planes(magnitudes: torch.Tensor, *, descending: bool) -> tuple[torch.Tensor, ...]:
    """Ranks the entries of every row by magnitude.

    Args:
        magnitudes: (rows, n) non-negative fp32 on the CPU.
        descending: Whether the largest entry of a row has rank 0, or the smallest.

    Returns:
        High and low bytes of the ranks, uint8 of shape (rows * n,). Entries of equal magnitude
        are ranked by position, so that the ranks are the same on every machine.
    """
    rows, n = magnitudes.shape
    ranks = np.empty((rows, n), dtype=np.uint16)
    step = max(1, _AT_ONCE // max(1, n))
    for start in range(0, rows, step):
        part = magnitudes[start : start + step].contiguous().view(torch.int32).numpy()
        # A magnitude's bits sort like the number. With the position below them the keys are
        # unique: sorting plain int64 is several times as fast as a stable argsort.
        keys = part.astype(np.int64)
        if descending:
            np.subtract(np.iinfo(np.int32).max, keys, out=keys)
        keys <<= 32
        row = np.arange(len(keys))[:, None]
        pieces = [slice(c, min(c + _AT_ONCE, n)) for c in range(0, n, _AT_ONCE)]
        for piece in pieces:
            keys[:, piece] |= np.arange(piece.start, piece.stop)
        keys.sort(axis=1)
        for piece in pieces:
            level = np.arange(piece.start, piece.stop) * LEVELS // max(n, LEVELS)
            ranks[start + row, keys[:, piece] & 0xFFFFFFFF] = level
    flat = ranks.reshape(-1)
    return tuple(torch.from_numpy(b.astype(np.uint8)) for b in (flat >> 8, flat & 0xFF))
