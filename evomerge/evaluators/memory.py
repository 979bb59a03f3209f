"""What happens when a batch does not fit into memory: it is halved, and so are the later ones."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

log = logging.getLogger(__name__)

Row = TypeVar("Row")
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


class Portions:
    """Works through rows, as many at a time as fit into memory.

    Rows must be independent of each other, so that how they are divided changes no answer. What
    was learned stays: a later call starts with the size that fitted.

    Attributes:
        limit: Most rows at a time; None as long as everything fitted.
    """

    def __init__(self) -> None:
        self.limit: int | None = None

    def run(self, rows: Sequence[Row], work: Callable[[Sequence[Row]], Result]) -> list[Result]:
        """Calls ``work`` on consecutive portions of ``rows``; what does not fit is halved.

        Args:
            rows: What there is to do.
            work: Does some of it. It is called again after it ran out of memory, so it must not
                have changed anything by then.

        Returns:
            What ``work`` returned, in the order of the rows.

        Raises:
            torch.OutOfMemoryError: And whatever else ``work`` raises, when one row does not fit.
        """
        results: list[Result] = []
        start = 0
        while start < len(rows):
            size = min(self.limit or len(rows), len(rows) - start)
            try:
                results.append(work(rows[start : start + size]))
            except Exception as err:
                if size == 1 or not is_out_of_memory(err):
                    raise
                self.limit = size // 2
            else:
                start += size
                continue
            release()  # only here is the traceback gone, and with it the tensors of its frames
            log.warning("%d rows do not fit into memory; going on with %d.", size, self.limit)
        return results
