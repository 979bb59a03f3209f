"""The last feed-forward block of a model, computed only where logits are needed.

What a layer's feed-forward block computes at one position depends on that position alone, and
behind the last layer only the positions matter whose logits are asked for: of a question with
four answers a tenth or less. The keys and values of the last layer are needed everywhere; its
feed-forward block, two thirds of a layer, is not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

Positions = tuple[torch.Tensor, torch.Tensor]
"""(U,) rows and (U,) columns."""

_MOST = 0.5
"""Share of a batch's positions above which the block sees all of them: gathering costs, too."""


class LastBlock:
    """Hooks on the last layer's ``mlp``; elsewhere than at the wanted positions its output is 0.

    Args:
        model: The resident model.
        wanted: Holds the positions of the forward pass that is about to run, or nothing.

    Attributes:
        usable: Whether it gives the model's own logits; None until somebody has compared them.
    """

    def __init__(self, model: torch.nn.Module, wanted: Sequence[Positions]) -> None:
        self._block = last_mlp(model)
        self.usable: bool | None = False if self._block is None else None
        self._wanted = wanted
        self._shape: torch.Size | None = None

    @contextlib.contextmanager
    def hooked(self, short: bool | None = None) -> Iterator[None]:
        """Passes of the model within take the short way where that is usable.

        Args:
            short: Whether they take it all the same, to compare both.
        """
        if self._block is None or not (self.usable if short is None else short):
            yield
            return
        handles = (self._block.register_forward_pre_hook(self._gather),
                   self._block.register_forward_hook(self._scatter))  # fmt: skip
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _gather(self, _: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        self._shape = None
        if not self._wanted:
            return None
        hidden = args[0]
        if len(self._wanted[-1][0]) > _MOST * hidden.shape[0] * hidden.shape[1]:
            return None
        self._shape = hidden.shape
        return (hidden[on(self._wanted[-1], hidden)][None], *args[1:])

    def _scatter(self, _: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor | None:
        del args
        if self._shape is None:
            return None
        whole = output.new_zeros(self._shape)
        whole[on(self._wanted[-1], whole)] = output[0]
        return whole


def on(positions: Positions, tensor: torch.Tensor) -> Positions:
    """Positions as an index of a tensor, which may lie on another GPU than the batch."""
    rows, columns = positions
    return rows.to(tensor.device), columns.to(tensor.device)


def last_mlp(model: torch.nn.Module) -> torch.nn.Module | None:
    """The feed-forward block of a model's last layer, as most architectures name it."""
    stacks = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m)]
    layers = max(stacks, key=len, default=None)
    block = None if layers is None else getattr(layers[-1], "mlp", None)
    return block if isinstance(block, torch.nn.Module) else None
