"""The k-th smallest of numbers that stream by: exact, in one pass and a part, in little memory.

A sample says between which two numbers a place must lie; one pass counts what is below and keeps
what is between, some tenths of a percent. Where the sample misled, that pass is repeated with
wider bounds.
"""

from __future__ import annotations

import array
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

_Row = npt.NDArray[np.float32]

_SAMPLE = 1 << 20
"""Numbers of a row that are sorted; a shorter row is sorted whole."""
_MARGIN = 6.0
"""Standard deviations of a sample's quantile at which its bounds are set."""


def order_statistics(
    rows: Callable[[int], Iterator[torch.Tensor]],
    n: int,
    places: Sequence[int],
    sample_size: int = _SAMPLE,
) -> torch.Tensor:
    """Finds the numbers that sorting would put at the given places, row by row.

    Args:
        rows: Starts a pass over every so-many-th entry: chunks (K, any) of the same K rows of
            finite numbers, in any order.
        n: Length of a row, at least 1.
        places: P places, 0 for the smallest, below n.
        sample_size: Rows up to this length are sorted.

    Returns:
        (K, P) float64, of numbers rounded to fp32.
    """
    step = max(1, n // sample_size)
    sample = torch.cat([chunk.float() for chunk in rows(step)], 1).cpu().sort(1).values
    if step == 1:
        return sample[:, list(places)].double()
    found = np.full((len(sample), len(places)), np.nan)
    margin = _MARGIN
    while np.isnan(found).any():
        between = [[_Between.of(row, p / n, margin) for p in places] for row in sample.numpy()]
        for chunk in rows(1):
            for row, across in zip(chunk.float().cpu().numpy(), between, strict=True):
                for one in across:
                    one.add(row)
        for i, across in enumerate(between):
            found[i] = [one.number_at(p) for one, p in zip(across, places, strict=True)]
        margin *= 16
    return torch.from_numpy(found)


class _Between:
    """What one pass says about one place of one row: counts, and the numbers between two bounds.

    Attributes:
        low: Lower bound.
        high: Upper bound.
        below: How many numbers are less than the lower bound.
        at_low: Equal to it: many where an expert left most entries alone.
        at_high: Equal to the upper bound.
        inside: The numbers between the two, in one growing piece: thousands of small tensors
            would leave the heap full of holes.
    """

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high
        self.below = self.at_low = self.at_high = 0
        self.inside = array.array("f")

    @classmethod
    def of(cls, ordered: _Row, share: float, margin: float) -> _Between:
        """Bounds of the number that a share of a row is less than, by an ordered sample of it."""
        m = len(ordered)
        spread = margin * ((m * share * (1 - share)) ** 0.5 + 1)
        first, last = int(share * m - spread), int(share * m + spread) + 1
        return cls(
            float(ordered[first]) if first >= 0 else -np.inf,
            float(ordered[last]) if last < m else np.inf,
        )

    def add(self, numbers: _Row) -> None:
        """Takes a piece of the row in."""
        exceeding = numbers > self.low
        reaching = int(np.count_nonzero(numbers >= self.low))
        self.below += len(numbers) - reaching
        self.at_low += reaching - int(np.count_nonzero(exceeding))
        self.at_high += int(np.count_nonzero(numbers == self.high))
        exceeding &= numbers < self.high
        self.inside.frombytes(numbers[exceeding].tobytes())

    def number_at(self, place: int) -> float:
        """The number at a place; NaN where it lies outside the bounds."""
        rest = place - self.below
        if 0 <= rest < self.at_low:
            return self.low
        rest -= self.at_low
        if 0 <= rest < len(self.inside):
            return float(np.partition(np.frombuffer(self.inside, np.float32), rest)[rest])
        rest -= len(self.inside)
        return self.high if 0 <= rest < self.at_high else np.nan
