"""Running out of memory, on a GPU or on the CPU."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, rather than that something is wrong."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "not enough memory" in str(error)


def release() -> None:
    """Gives cached device memory back, for a smaller attempt; call it outside the handler."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
