"""One elementwise function for the merges of pruned task vectors.

For an entry with base ``b`` and task vectors ``d_k = W_k - b``::

    t_k = keep_k d_k / p_k                      prune (p_k = 1 unless it rescales by entry)
    v_k = scale_k t_k                           weigh
    agree_k = sign(v_k) == sign(sum_j v_j)      elect: by weighted values, or by t (TIES' paper)
    W = b + sum_k agree_k v_k / sum_k agree_k weight_k

A mask is an interval of magnitude ranks, or 16-bit uniforms (:mod:`evomerge.methods.counter`)
below a threshold that may grow with the rank. Both are whole numbers that fp32 holds exactly, and
what is compared is rounded the same way in every piece, compiled or not, on every machine.
``native.c`` is the same function again, for the CPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from evomerge.methods.counter import WEYL, mix_
from evomerge.methods.lanes import Lanes
from evomerge.methods.parts import wide_dtype

_HALF = 1 << 15


@dataclasses.dataclass(frozen=True)
class Form:
    """Which of the function's branches a merge takes; another form is another program.

    Attributes:
        experts: Number K of experts.
        random: Whether masks are drawn, or intervals of ranks.
        ranked: Whether there are ranks.
        by_entry: Whether what is kept is divided by its own probability.
        bounded: Whether the interval may begin above rank 0.
        election: ``"none"``, ``"weighted"`` or ``"paper"``.
        normalize: Whether the sum of agreeing values is divided by that of their weights.
    """

    experts: int
    random: bool
    ranked: bool
    by_entry: bool = False
    bounded: bool = False
    election: str = "none"
    normalize: bool = False

    def macros(self) -> dict[str, int]:
        """The form in the terms of ``native.c``."""
        return {
            "K": self.experts,
            "RANDOM": self.random,
            "RANKED": self.ranked,
            "BY_ENTRY": self.by_entry,
            "BOUNDED": self.bounded,
            "ELECTION": ("none", "weighted", "paper").index(self.election),
            "NORMALIZE": self.normalize,
        }

    def merge(
        self,
        out: torch.Tensor,
        tensors: Sequence[torch.Tensor],
        numbers: Any,
        whole: Any,
        lanes: Lanes,
    ) -> None:
        """Writes a piece of the merge: see :data:`evomerge.methods.compiled.Piece`.

        Args:
            out: Flat piece.
            tensors: Base, K experts, then every expert's ranks.
            numbers: K scales, K weights, K windows of two floats. A window is the first
                rank kept and the first beyond; where masks are drawn, the threshold of the
                uniforms at rank 0, in 2^-16, and its slope per rank. Ranks count from
                :func:`evomerge.methods.ranks.middle`.
            whole: The two halves of every expert's key, where masks are drawn.
            lanes: Gives temporaries.
        """
        base = widened(tensors[0], wide_dtype(out), lanes)
        k = self.experts
        scales, weights, windows = numbers[:k], numbers[k : 2 * k], numbers[2 * k :]
        if self.by_entry:  # instead of 2^-16 for every entry's probability: exact
            scales = [s * 2.0**16 for s in scales]
        values = self.pruned(base, tensors[1:], windows, whole, lanes)
        if self.election != "paper":
            values = [value.mul_(s) for value, s in zip(values, scales, strict=True)]
        if self.election == "none":
            out.copy_(_sum_(values).add_(base))
            return
        sign = lanes.sign(_sum_([lanes.spare(base.dtype).copy_(values[0]), *values[1:]]))
        votes = [value.mul_(sign).clamp_min_(0) for value in values]  # 0 where it disagrees
        share = None
        if self.normalize:
            masks = [lanes.above(vote, 0) for vote in votes]
            share = _sum_([lanes.constant(m, w) for m, w in zip(masks, weights, strict=True)])
        if self.election == "paper":
            votes = [vote.mul_(s) for vote, s in zip(votes, scales, strict=True)]
        total = _sum_(votes)
        if share is not None:
            total.div_(lanes.or_one(share))
        out.copy_(total.mul_(sign).add_(base))

    def pruned(
        self,
        base: torch.Tensor,
        tensors: Sequence[torch.Tensor],
        windows: Any,
        whole: Any,
        lanes: Lanes,
    ) -> list[torch.Tensor]:
        """The pruned task vectors ``t_k`` of a piece, in base's dtype; see :meth:`merge`.

        Where they are divided by their own probability, they are so in units of 2^-16.
        """
        experts, ranks = tensors[: self.experts], tensors[self.experts :]
        wide, found = base.dtype, []
        steps = lanes.hash_numbers().mul_(WEYL) if self.random else None
        deltas = [lanes.spare(wide) for _ in experts]
        mark = lanes.mark()
        for k, (expert, room) in enumerate(zip(experts, deltas, strict=True)):
            lanes.release(mark)
            delta = room.copy_(expert).sub_(base)
            rank = lanes.spare(wide).copy_(ranks[k]) if self.ranked else None
            first, second = windows[2 * k : 2 * k + 2]
            if steps is not None:
                uniform = _uniform(steps, whole[2 * k : 2 * k + 2], wide, lanes)
                if rank is None:
                    keep = lanes.below(uniform, first - _HALF)
                else:
                    bound = rank.mul_(second).add_(first)
                    keep = lanes.below(uniform.add_(_HALF), bound)
                    if self.by_entry:
                        delta.div_(bound.clamp_min_(1))
                delta = lanes.only(keep, delta)
            elif rank is not None:
                delta = lanes.only(lanes.below(rank, second), delta)
                if self.bounded:
                    delta = lanes.only(lanes.above(rank, first - 1), delta)
            found.append(delta)
        lanes.release(mark)
        return found


def widened(tensor: torch.Tensor, wide: torch.dtype, lanes: Lanes) -> torch.Tensor:
    """The tensor in a wider dtype; itself where it has it."""
    return tensor if tensor.dtype == wide else lanes.spare(wide).copy_(tensor)


def _sum_(terms: Sequence[torch.Tensor]) -> torch.Tensor:
    """The sum, written over the first term."""
    for term in terms[1:]:
        terms[0].add_(term)
    return terms[0]


def _uniform(
    steps: torch.Tensor, halves: Sequence[Any], wide: torch.dtype, lanes: Lanes
) -> torch.Tensor:
    """16-bit uniforms less 2^15; ``steps`` are the Weyl sequence, the same for all keys."""
    first, second = halves
    bits = torch.add(steps, first, out=lanes.hashes())
    mix_(bits, lanes.hashes(), second)
    return lanes.spare(wide).copy_(lanes.halves(bits))
