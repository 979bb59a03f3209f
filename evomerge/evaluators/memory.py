"""What happens when a batch does not fit into memory: it is replaced by its halves, for good."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

log = logging.getLogger(__name__)

Piece = TypeVar("Piece")
Result = TypeVar("Result")

_SIGNS = ("out of memory", "not enough memory", "DefaultCPUAllocator", "STATUS_ALLOC_FAILED")
"""What a RuntimeError says that means it: CUDA's, the CPU allocator's, cuBLAS's and cuDNN's."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a smaller batch might fit."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def release() -> None:
    """Gives back what a failed attempt has left: unreachable tensors and the CUDA cache."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def in_pieces(
    pieces: list[Piece],
    work: Callable[[Piece], Result],
    halves: Callable[[Piece], Sequence[Piece]],
) -> list[Result]:
    """Does some work piece by piece; one that does not fit into memory is replaced by its halves.

    The pieces must be independent of each other, so that how they are divided changes no answer.

    Args:
        pieces: What there is to do. The list is changed, so that a later call begins with what
            fitted.
        work: Does one piece. It is called again after it ran out of memory, so it must not have
            changed anything by then.
        halves: What to do in place of a piece; nothing where none is smaller.

    Returns:
        What ``work`` returned, in the order of the pieces as they are now.

    Raises:
        torch.OutOfMemoryError: And whatever else ``work`` raises, when the smallest piece does not
            fit.
    """
    results: list[Result] = []
    while len(results) < len(pieces):
        at = len(results)
        try:
            results.append(work(pieces[at]))
        except Exception as err:
            smaller = halves(pieces[at]) if is_out_of_memory(err) else ()
            if not smaller:
                raise
        else:
            continue
        pieces[at : at + 1] = smaller
        release()  # only here is the traceback gone, and with it the tensors of its frames
        log.warning("out of memory: a batch is halved from now on.")
    return results


def half(n: int) -> Sequence[int]:
    """Half as many at a time, as one piece: for what divides its work itself."""
    return (n // 2,) if n > 1 else ()
