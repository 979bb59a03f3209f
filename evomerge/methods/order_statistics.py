"""The k-th smallest of numbers that stream by: exact, in one pass and a part, in little memory.

A sample says between which two numbers a place must lie; one pass counts what is below and keeps
what is between, some tenths of a percent. Where the sample misled, that pass is repeated with
wider bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

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
    sample = torch.cat([chunk.float() for chunk in rows(step)], 1).sort(1).values
    if step == 1:
        return sample[:, list(places)].double()
    k = len(sample)
    found = torch.full((k, len(places)), torch.nan, dtype=torch.float64)
    margin = _MARGIN
    while found.isnan().any():
        bounds = [_bounds(sample, place / n, margin) for place in places]
        passed = [_Passed(k) for _ in places]
        for chunk in rows(1):
            numbers = chunk.float()
            for (low, high), one in zip(bounds, passed, strict=True):
                one.add(numbers, low, high)
        for p, (place, (low, high), one) in enumerate(zip(places, bounds, passed, strict=True)):
            for i in range(k):
                found[i, p] = one.number_at(place, i, float(low[i]), float(high[i]))
        margin *= 16
    return found


class _Passed:
    """What one pass says about one place: counts below and at the bounds, numbers between.

    Attributes:
        below: (K,) numbers less than the lower bound.
        at_low: (K,) equal to it: many where an expert left most entries alone.
        at_high: (K,) equal to the upper bound.
        between: Per row, pieces of the numbers between the two.
    """

    def __init__(self, k: int) -> None:
        self.below, self.at_low, self.at_high = torch.zeros(3, k, dtype=torch.int64)
        self.between: list[list[torch.Tensor]] = [[] for _ in range(k)]

    def add(self, numbers: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> None:
        """Takes a chunk (K, m) in; bounds are (K, 1)."""
        above = numbers > low
        at_low = numbers == low
        self.at_low += at_low.sum(1).cpu()
        self.below += (~(above | at_low)).sum(1).cpu()
        self.at_high += (numbers == high).sum(1).cpu()
        inside = above & (numbers < high)
        for row, keep, pieces in zip(numbers, inside, self.between, strict=True):
            pieces.append(row[keep])

    def number_at(self, place: int, i: int, low: float, high: float) -> float:
        """The number at a place of row i; NaN where it lies outside the bounds."""
        rest = place - int(self.below[i])
        if rest < 0:
            return torch.nan
        if rest < int(self.at_low[i]):
            return low
        rest -= int(self.at_low[i])
        between = torch.cat(self.between[i])
        if rest < len(between):
            return float(between.kthvalue(rest + 1).values)
        return high if rest - len(between) < int(self.at_high[i]) else torch.nan


def _bounds(
    sample: torch.Tensor, share: float, margin: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(K, 1) bounds of the number that a share of the row is less than."""
    m = sample.shape[1]
    spread = margin * ((m * share * (1 - share)) ** 0.5 + 1)
    first, last = int(share * m - spread), int(share * m + spread) + 1
    edge = torch.full_like(sample[:, :1], torch.inf)
    low = sample[:, first : first + 1] if first >= 0 else -edge
    return low, (sample[:, last : last + 1] if last < m else edge)
