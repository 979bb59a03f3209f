"""One elementwise function for the merges of pruned task vectors.

For an entry with base ``b`` and task vectors ``d_k = W_k - b``::

    t_k = keep_k d_k / p_k                      prune (p_k = 1 unless it rescales by entry)
    v_k = scale_k t_k                           weigh
    agree_k = sign(v_k) == sign(sum_j v_j)      elect: by weighted values, or by t (TIES' paper)
    W = b + lambda sum_k agree_k v_k / sum_k agree_k weight_k

Masks are decided in integers, and so the same in every chunk, compiled or not, on every machine:
by an interval of magnitude ranks, or by 24-bit uniforms (:mod:`evomerge.methods.counter`) below a
threshold that may grow with the rank. Comparisons are written into floats, which a CPU does
several times as fast as into booleans.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from evomerge.methods.compiled import Spare
from evomerge.methods.counter import hash_
from evomerge.methods.kernels import wide_dtype

NUMBERS = 4
"""Floats per expert: scale, weight, centre and half width of the ranks kept; then lambda."""
WHOLE = 4
"""Integers per expert: threshold at rank 0, its slope in 1/128, and the two halves of the key."""


@dataclasses.dataclass(frozen=True)
class Form:
    """Which of the function's branches a merge takes; another form is another program.

    Attributes:
        experts: Number K of experts.
        random: Whether masks are drawn, or intervals of ranks.
        ranked: Whether there are ranks.
        by_entry: Whether what is kept is divided by its own probability.
        election: ``"none"``, ``"weighted"`` or ``"paper"``.
        normalize: Whether the sum of agreeing values is divided by that of their weights.
    """

    experts: int
    random: bool
    ranked: bool
    by_entry: bool = False
    election: str = "none"
    normalize: bool = False

    def merge(
        self,
        out: torch.Tensor,
        tensors: Sequence[torch.Tensor],
        numbers: Any,
        whole: Any,
        spare: Spare,
    ) -> None:
        """Writes a piece of the merge: see :data:`evomerge.methods.compiled.Piece`.

        Args:
            out: Flat piece.
            tensors: Base, K experts, then high and low bytes of every expert's ranks.
            numbers: :data:`NUMBERS` for every expert, and lambda.
            whole: :data:`WHOLE` for every expert where masks are drawn.
            spare: Gives temporaries.
        """
        wide = wide_dtype(out)
        values = self.pruned(tensors, wide, numbers, whole, spare)
        scales = [numbers[NUMBERS * k] for k in range(self.experts)]
        if self.election != "paper":
            values = [v.mul_(scale) for v, scale in zip(values, scales, strict=True)]
            scales = [1.0] * self.experts
        total = spare(wide).copy_(values[0])
        for value in values[1:]:
            total.add_(value)
        if self.election != "none":
            total = self._elected(total, values, scales, numbers, spare)
        out.copy_(total.mul_(numbers[-1]).add_(_widened(tensors[0], wide, spare)))

    def pruned(
        self,
        tensors: Sequence[torch.Tensor],
        wide: torch.dtype,
        numbers: Any,
        whole: Any,
        spare: Spare,
    ) -> list[torch.Tensor]:
        """The pruned task vectors ``t_k`` of a piece, in ``wide``; see :meth:`merge`."""
        base, experts, planes = (
            tensors[0],
            tensors[1 : self.experts + 1],
            tensors[1 + self.experts :],
        )
        base, keep = _widened(base, wide, spare), spare(wide)
        offsets = torch.arange(base.numel(), out=spare(torch.int32)) if self.random else None
        found = []
        for k, expert in enumerate(experts):
            delta = spare(wide).copy_(expert).sub_(base)
            ranks = planes[2 * k : 2 * k + 2]
            if offsets is None:
                centre, half = numbers[NUMBERS * k + 2 : NUMBERS * (k + 1)]
                _rank(ranks, keep, spare).sub_(centre).abs_().le_(half)
            else:
                drawn = whole[WHOLE * k : WHOLE * (k + 1)]
                bound = _random_mask(keep, offsets, ranks, drawn, spare)
                if self.by_entry and bound is not None:
                    delta.mul_(2.0**24).div_(spare(wide).copy_(bound).clamp_min_(1))
            found.append(delta.mul_(keep))
        return found

    def _elected(
        self,
        total: torch.Tensor,
        values: Sequence[torch.Tensor],
        scales: Sequence[Any],
        numbers: Any,
        spare: Spare,
    ) -> torch.Tensor:
        """Sums the values that have the sign of their total, which is positive where it is 0."""
        sign = total.ge_(0).mul_(2).sub_(1)
        agree, elected = spare(sign.dtype), spare(sign.dtype).zero_()
        weights = spare(sign.dtype).zero_()
        for k, value in enumerate(values):
            torch.mul(value, sign, out=agree).gt_(0)
            elected.add_(value.mul_(agree).mul_(scales[k]))
            if self.normalize:
                weights.add_(agree.mul_(numbers[NUMBERS * k + 1]))
        if self.normalize:
            elected.div_(weights.add_(agree.copy_(weights).eq_(0)))  # nothing agrees: 0 / 1
        return elected


def _widened(tensor: torch.Tensor, wide: torch.dtype, spare: Spare) -> torch.Tensor:
    return tensor if tensor.dtype == wide else spare(wide).copy_(tensor)


def _rank(planes: Sequence[torch.Tensor], into: torch.Tensor, spare: Spare) -> torch.Tensor:
    high, low = planes
    return into.copy_(high).mul_(256).add_(spare(into.dtype).copy_(low))


def _random_mask(
    keep: torch.Tensor,
    offsets: torch.Tensor,
    planes: Sequence[torch.Tensor],
    drawn: Sequence[Any],
    spare: Spare,
) -> torch.Tensor | None:
    """1 where the entry's 24-bit uniform is below its threshold, else 0.

    Returns:
        The thresholds where they depend on the rank, else None.
    """
    start, slope, first, second = drawn
    bits, other = spare(torch.int32).copy_(offsets), spare(torch.int32)
    hash_(bits, other, first, second)
    bits.bitwise_right_shift_(8).bitwise_and_(0xFFFFFF)
    if not planes:
        keep.copy_(bits.sub_(start)).lt_(0)
        return None
    bound = _rank(planes, other, spare).mul_(slope).bitwise_right_shift_(7).add_(start)
    keep.copy_(bits.sub_(bound)).lt_(0)
    return bound
