"""What elementwise functions of many tensors need beside arithmetic, in two forms.

One function is run eagerly, piece by piece, or compiled. An eager CPU kernel writes comparisons
into floats several times as fast as into booleans, and allocating temporaries for every piece
would cost more than the arithmetic; a compiler keeps temporaries in registers and wants booleans
and selections. :class:`Buffers` and :class:`Fused` are the two forms of :class:`Lanes`.
"""

from __future__ import annotations

import sys
from typing import Any, Protocol

import torch

Number = Any  # a Python number, or a 0-dim tensor where a function is compiled


class Lanes(Protocol):
    """Temporaries and selections; a mask may be used once."""

    def spare(self, dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor of the piece's length."""
        ...

    def hashes(self) -> torch.Tensor:
        """An uninitialised int32 tensor of as many hashes as are taken."""
        ...

    def hash_numbers(self) -> torch.Tensor:
        """A temporary with their numbers: entries 2 i and 2 i + 1 belong to hash i."""
        ...

    def halves(self, hashes: torch.Tensor) -> torch.Tensor:
        """An entry's half of its hash, as a signed number: of an even one the lower half."""
        ...

    def mark(self) -> Any:
        """What :meth:`release` returns to."""
        ...

    def release(self, mark: Any) -> None:
        """Takes back every temporary that was given since the mark."""
        ...

    def below(self, x: torch.Tensor, bound: Number | torch.Tensor) -> Any:
        """The mask ``x < bound``."""
        ...

    def above(self, x: torch.Tensor, bound: Number) -> Any:
        """The mask ``x > bound``."""
        ...

    def only(self, mask: Any, values: torch.Tensor) -> torch.Tensor:
        """``values`` where the mask holds, else 0; ``values`` are overwritten."""
        ...

    def constant(self, mask: Any, number: Number) -> torch.Tensor:
        """``number`` where the mask holds, else 0."""
        ...

    def sign(self, x: torch.Tensor) -> torch.Tensor:
        """1 where ``x >= 0``, else -1; ``x`` is overwritten."""
        ...

    def or_one(self, x: torch.Tensor) -> torch.Tensor:
        """1 where ``x`` is 0, else ``x``, which is overwritten."""
        ...


class Buffers:
    """Eager form. Temporaries are allocated for the first piece and used again by all others.

    Args:
        size: Entries of the longest piece.
        device: Where the pieces lie.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self._size = size
        self._device = device
        self._all: dict[torch.dtype, list[torch.Tensor]] = {}
        self._taken: dict[torch.dtype, int] = {}
        self._n = size

    def restart(self, n: int) -> None:
        """Begins a piece of ``n`` entries."""
        self._taken, self._n = {}, n

    def spare(self, dtype: torch.dtype) -> torch.Tensor:
        """The next one of its dtype."""
        made, taken = self._all.setdefault(dtype, []), self._taken.get(dtype, 0)
        if taken == len(made):
            made.append(torch.empty(self._size, dtype=dtype, device=self._device))
        self._taken[dtype] = taken + 1
        return made[taken] if self._n == self._size else made[taken][: self._n]

    def hashes(self) -> torch.Tensor:
        """One for every two entries."""
        return self.spare(torch.int32)[: (self._n + 1) // 2]

    def hash_numbers(self) -> torch.Tensor:
        """0, 1, 2, ..."""
        return torch.arange((self._n + 1) // 2, out=self.hashes())

    def halves(self, hashes: torch.Tensor) -> torch.Tensor:
        """The same memory."""
        if sys.byteorder == "big":
            hashes = hashes << 16 | (hashes >> 16) & 0xFFFF
        return hashes.view(torch.int16)[: self._n]

    def mark(self) -> dict[torch.dtype, int]:
        """How many of each dtype are taken."""
        return dict(self._taken)

    def release(self, mark: dict[torch.dtype, int]) -> None:
        """Those taken since are the next ones again."""
        self._taken = dict(mark)

    def below(self, x: torch.Tensor, bound: Number | torch.Tensor) -> Any:
        """1.0 or 0.0."""
        return torch.lt(x, bound, out=self.spare(x.dtype))

    def above(self, x: torch.Tensor, bound: Number) -> Any:
        """1.0 or 0.0."""
        return torch.gt(x, bound, out=self.spare(x.dtype))

    def only(self, mask: Any, values: torch.Tensor) -> torch.Tensor:
        """A product; values are finite."""
        return values.mul_(mask)

    def constant(self, mask: Any, number: Number) -> torch.Tensor:
        """A product."""
        product: torch.Tensor = mask.mul_(number)
        return product

    def sign(self, x: torch.Tensor) -> torch.Tensor:
        """Twice the mask, less one."""
        return x.ge_(0).mul_(2).sub_(1)

    def or_one(self, x: torch.Tensor) -> torch.Tensor:
        """Adds the mask of zeros."""
        return x.add_(torch.eq(x, 0, out=self.spare(x.dtype)))


class Fused:
    """Compiled form: nothing here is ever stored.

    Args:
        like: A tensor of the piece's length, on its device.
    """

    def __init__(self, like: torch.Tensor) -> None:
        self._like = like

    def spare(self, dtype: torch.dtype) -> torch.Tensor:
        """A name for what the compiler keeps in registers."""
        return torch.empty_like(self._like, dtype=dtype)

    def hashes(self) -> torch.Tensor:
        """One for every entry: of arithmetic there is enough."""
        return self.spare(torch.int32)

    def hash_numbers(self) -> torch.Tensor:
        """0, 0, 1, 1, ..."""
        return torch.arange(self._like.numel(), out=self.hashes()).bitwise_right_shift_(1)

    def halves(self, hashes: torch.Tensor) -> torch.Tensor:
        """A shift by 16 bits or none, and one back that takes the sign along."""
        number = torch.arange(self._like.numel(), out=self.hashes())
        return hashes.bitwise_left_shift_((~number & 1) << 4).bitwise_right_shift_(16)

    def mark(self) -> None:
        """Nothing is held."""

    def release(self, mark: None) -> None:
        """Nothing to take back."""

    def below(self, x: torch.Tensor, bound: Number | torch.Tensor) -> Any:
        """A boolean."""
        return x < bound

    def above(self, x: torch.Tensor, bound: Number) -> Any:
        """A boolean."""
        return x > bound

    def only(self, mask: Any, values: torch.Tensor) -> torch.Tensor:
        """A selection."""
        return torch.where(mask, values, 0.0)

    def constant(self, mask: Any, number: Number) -> torch.Tensor:
        """A selection."""
        return torch.where(mask, number, 0.0)

    def sign(self, x: torch.Tensor) -> torch.Tensor:
        """A selection."""
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    def or_one(self, x: torch.Tensor) -> torch.Tensor:
        """A selection."""
        return torch.where(x == 0, 1.0, x)
