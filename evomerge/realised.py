"""How much of a merge is left when it is rounded to a narrow dtype.

bfloat16 keeps 8 significant bits, so neighbours are 0.4 to 0.8% of a weight apart. A merge that
moves weights by less than that is mostly rounded away or rounded up; the realised coefficient
says by how much, over all entries together.
"""

from __future__ import annotations

import dataclasses

import torch

STEP = 0.05
"""A realised share that is further from 1 than this is worth a word. Of bfloat16 weights it stays
nearer where an expert moved its weights by 5% or more (docs/doctor.md)."""
_SAMPLE = 1 << 15
"""Entries taken per tensor at most, evenly spread: with a hundred tensors the realised share is
known to better than 0.01, and an export takes no longer for it."""


@dataclasses.dataclass
class Realised:
    """Running sums over the tensors of one merge.

    Attributes:
        wanted: ``|exact - base|^2``, of the merge before rounding.
        got: ``<cast - base, exact - base>``.
        missed: ``|cast - exact|^2``.
    """

    wanted: float = 0.0
    got: float = 0.0
    missed: float = 0.0

    def add(
        self, base: torch.Tensor, exact: torch.Tensor, cast: torch.Tensor, count: float = 1.0
    ) -> None:
        """Adds entries of one tensor.

        Args:
            base: (n,) of any floating dtype.
            exact: (n,) of float32, the merge before it was rounded.
            cast: (n,) the same, rounded to any dtype.
            count: How many entries of the tensor each of these stands for.
        """
        b, e, c = (t.double() for t in (base, exact, cast))
        step, error = e - b, c - e
        wanted = float(step @ step)
        self.wanted += count * wanted
        self.got += count * (wanted + float(error @ step))
        self.missed += count * float(error @ error)

    @property
    def share(self) -> float | None:
        """The realised share of the coefficients, 1 being exact; None for the base itself."""
        return self.got / self.wanted if self.wanted > 0 else None

    @property
    def error(self) -> float | None:
        """Norm of the rounding error beside that of the merge's step from the base."""
        return (self.missed / self.wanted) ** 0.5 if self.wanted > 0 else None

    def sentence(self, dtype: str, rounding: str) -> str:
        """One or two sentences for the user; empty for the base itself."""
        if self.share is None:
            return ""
        text = (
            f"Rounded to {dtype} ({rounding}): {self.share:.2f} of the step from the base is "
            f"realised, with a rounding error {self.error:.2f} times as large as the step."
        )
        if abs(self.share - 1) > STEP and rounding == "nearest":
            text += (
                " Its coefficients act as others than were asked for: write it with --dtype "
                "float32, or search with space.fixed.rounding=dither."
            )
        return text


def sample(tensor: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Evenly spread entries of a tensor, (n,), and how many of its entries each stands for."""
    flat = tensor.reshape(-1)
    entries = flat[:: max(1, -(-flat.numel() // _SAMPLE))].contiguous()
    return entries, flat.numel() / max(1, entries.numel())
