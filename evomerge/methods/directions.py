"""A merge as the base plus a weighted sum of directions that were prepared once.

``W = W_0 + sum_i c_i B_i``: what most methods on task vectors collapse to when their masks, ranks
or singular vectors do not depend on the coefficients that are searched. A method says what its
directions ``B_i`` are; here they are stored (in the sources' dtype: as many bytes as the experts
themselves) and combined at memory speed. A tensor on which a method does nothing of its own is
merged from the mapped experts, without a copy.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch

from evomerge.errors import ConfigError
from evomerge.methods.base import Basis, Scalar, Sources
from evomerge.methods.kernels import weighted_sum
from evomerge.methods.parts import row_parts, wide_dtype, wide_parts

VOCABULARY = r"(^|\.)(\w*embed\w*|wte|wpe|shared|lm_head)\.\w+$"
"""Names of embeddings and heads, whose rows are tokens: most methods leave them out."""


class OnDirections:
    """What the methods share that prepare one direction per expert."""

    needs_base = True
    n_experts: tuple[int, int | None] = (1, None)

    def combine(
        self,
        out: torch.Tensor,
        basis: Basis,
        coefficients: Mapping[str, Sequence[float]],
        fixed: Mapping[str, Scalar],
    ) -> None:
        """Writes the merge."""
        combine(out, basis, coefficients["weight"])


def base_of(sources: Sources, method: str) -> torch.Tensor:
    """The base's tensor; raises ConfigError where there is none."""
    if sources.base is None:
        raise ConfigError(f"{method} needs a base model; set models.base.")
    return sources.base


def is_matrix(sources: Sources, fixed: Mapping[str, Scalar]) -> bool:
    """Whether a method on matrices takes this tensor.

    It has two dimensions and is no embedding or head, unless ``fixed.embeddings`` is on.
    """
    first = sources.experts[0]
    taken = bool(fixed["embeddings"]) or re.search(VOCABULARY, sources.name) is None
    return first.ndim == 2 and first.numel() > 0 and taken


def task_vectors(sources: Sources, method: str) -> list[torch.Tensor]:
    """Whole task vectors in float64, for linear algebra; raises ConfigError without a base."""
    base = base_of(sources, method).double()
    return [e.double() - base for e in sources.experts]


def task_vector_parts(
    tensors: Iterable[Sources], method: str, step: int = 1
) -> Iterator[torch.Tensor]:
    """The flattened task vectors of a whole model in chunks (K, n): for a survey.

    The chunks are the caller's own, in fp32 (fp64 where the sources are fp64). ``step`` takes
    every so-many-th entry of each tensor.
    """
    for sources in tensors:
        base = base_of(sources, method)
        everyone = [t.reshape(-1)[::step] for t in (base, *sources.experts)]
        for _, (origin, *others) in wide_parts(everyone, wide_dtype(base)):
            yield torch.stack([o - origin for o in others])


def plain(sources: Sources, method: str, scale: float = 1.0) -> Basis:
    """Task arithmetic times ``scale`` (1 / K: the mean): base and experts, no copy."""
    return Basis((base_of(sources, method), *sources.experts), extra=scale)


def prepared(sources: Sources, method: str, directions: Sequence[torch.Tensor]) -> Basis:
    """Base and directions, these rounded to the sources' dtype."""
    dtype = _dtype(sources)
    return Basis(
        (base_of(sources, method), *(d.to(dtype).contiguous() for d in directions)), extra=None
    )


def elementwise(
    sources: Sources, method: str, of: Callable[[torch.Tensor], torch.Tensor]
) -> Basis:
    """Base and K directions that are a function of the task vectors, entry by entry.

    Args:
        sources: The tensor.
        method: Who asks, for errors.
        of: Maps a chunk of the task vectors, (K, n) in fp32 (fp64 where the sources are fp64), to
            the same chunk of the directions. May write to its argument.
    """
    base, experts = base_of(sources, method), sources.experts
    directions = [torch.empty(e.shape, dtype=_dtype(sources), device=e.device) for e in experts]
    flats = [d.view(-1) for d in directions]
    for part, (origin, *others) in wide_parts([base, *experts], wide_dtype(base)):
        for flat, row in zip(flats, of(torch.stack([o - origin for o in others])), strict=True):
            flat[part].copy_(row)
    return Basis((base, *directions), extra=None)


def broadcast(sources: Sources, method: str, factors: torch.Tensor) -> Basis:
    """Base and K task vectors times a factor per row or column.

    Args:
        sources: The tensor, with two dimensions or more; those after the first count as one.
        method: Who asks, for errors.
        factors: (K, rows or 1, columns or 1).
    """
    base, dtype = base_of(sources, method), _dtype(sources)
    wide, scaled = wide_dtype(base), []
    for expert, factor in zip(sources.experts, factors.to(base.device, wide), strict=True):
        direction = torch.empty(expert.shape, dtype=dtype, device=expert.device)
        for part in row_parts(base):
            delta = expert[part].flatten(1).to(wide) - base[part].flatten(1).to(wide)
            delta *= factor[part] if len(factor) > 1 else factor
            direction[part] = delta.view(direction[part].shape).to(dtype)
        scaled.append(direction)
    return Basis((base, *scaled), extra=None)


def combine(out: torch.Tensor, basis: Basis, weights: Sequence[float]) -> None:
    """Writes ``W_0 + sum_i weights[i] B_i`` into ``out``, however the basis was made."""
    if basis.extra is None:
        weighted_sum(out, basis.tensors, [1.0, *weights])
    else:
        scaled = [basis.extra * w for w in weights]
        weighted_sum(out, basis.tensors, [1.0 - sum(scaled), *scaled])


def _dtype(sources: Sources) -> torch.dtype:
    """What holds every expert."""
    found: torch.dtype = functools.reduce(torch.promote_types, (e.dtype for e in sources.experts))
    return found
