"""Where each entry stands in the order of magnitudes: sorted once, thresholded at any density.

An entry's rank is a whole number below 65,535, so that both ends of an interval of ranks fit in
16 bits. Up to 65,535 entries the ranks are exact, beyond that a density is resolved to 1/65,535.
"""

from __future__ import annotations

import numpy as np
import torch

LEVELS = (1 << 16) - 1
"""Number of distinct ranks."""

_AT_ONCE = 1 << 20  # entries: of several short rows, or of a piece of a long one


def ranked(magnitudes: torch.Tensor, *, descending: bool) -> torch.Tensor:
    """Ranks the entries of every row by magnitude.

    Args:
        magnitudes: (rows, n) non-negative fp32 on the CPU.
        descending: Whether the largest entry of a row has rank 0, or the smallest.

    Returns:
        int16 of shape (rows, n): the ranks modulo 2^16, since torch can do little with uint16.
        Entries of equal magnitude are ranked by position, so that the ranks are the same on every
        machine.
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
    return torch.from_numpy(ranks.view(np.int16))
