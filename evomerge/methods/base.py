"""What a merge method is: survey, prepare, combine."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch

Scalar = bool | int | float | str


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A searchable parameter of a merge method.

    Attributes:
        low: Default lower bound.
        high: Default upper bound.
        default: Where a search starts, in [low, high].
        doc: What it does, in one line.
        shared: True for one value per layer group instead of one per group and expert.
        least: Below this a value makes no sense.
        most: Above this a value makes no sense.
    """

    low: float
    high: float
    default: float
    doc: str
    shared: bool = False
    least: float = -math.inf
    most: float = math.inf


@dataclasses.dataclass(frozen=True)
class Sources:
    """One tensor of every model.

    Attributes:
        name: The tensor's name.
        base: The base model's tensor, or None.
        experts: K tensors of the same shape. All are memory-mapped: never written to. LoRA
            adapters come as :class:`~evomerge.methods.low_rank.LowRank` to methods with an
            attribute ``low_rank`` that is true, as dense tensors to all others.
        keys: K strings that identify the experts' contents wherever they lie, for random masks
            that are the same on every machine; empty where nobody knows them.
    """

    name: str
    base: torch.Tensor | None
    experts: Sequence[Any]
    keys: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Basis:
    """What is prepared once per tensor and combined by every candidate.

    Attributes:
        tensors: On the live model's device when they are combined; the sources themselves where a
            method needs no copy. Tensors, or :class:`~evomerge.methods.low_rank.LowRank` where
            the method takes those.
        extra: Small plain data that stays on the host: norms, angles, a Gram matrix.
    """

    tensors: tuple[Any, ...]
    extra: Any = None


class MergeMethod(Protocol):
    """One merge method.

    Attributes:
        name: Its key in :data:`evomerge.methods.METHODS`.
        needs_base: Whether it works on task vectors (expert - base).
        n_experts: Fewest and most experts that it merges, the base not counted; None: no limit.
        parameters: Searchable parameter name to its defaults.
        fixed: Setting that is not searched to its default.
    """

    name: str
    needs_base: bool
    n_experts: tuple[int, int | None]
    parameters: Mapping[str, Parameter]
    fixed: Mapping[str, Scalar]

    def survey(self, tensors: Iterable[Sources], fixed: Mapping[str, Scalar]) -> Any:
        """One pass over all tensors for global statistics; None where none are needed.

        Raises:
            ConfigError: A setting that makes no sense; also where there are no tensors, which is
                how settings are checked before anything expensive.
        """
        ...

    def prepare(self, sources: Sources, survey: Any, fixed: Mapping[str, Scalar]) -> Basis:
        """Once per search and tensor: the basis that every candidate combines."""
        ...

    def combine(
        self,
        out: torch.Tensor,
        basis: Basis,
        coefficients: Mapping[str, Sequence[float]],
        fixed: Mapping[str, Scalar],
    ) -> None:
        """Once per candidate and tensor: writes the merge into ``out``.

        Args:
            out: Live tensor, written in place; any floating dtype and device.
            basis: What :meth:`prepare` returned, its tensors on ``out``'s device.
            coefficients: Parameter name to its K values (or 1 shared value) for this tensor.
            fixed: Settings that are not searched.
        """
        ...
