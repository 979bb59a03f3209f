"""Compiles an elementwise function behind the caller's back, once that pays.

A search starts at once and small models never wait for a compiler: a kernel runs eagerly until it
has worked for about as long as compiling takes, then it is compiled in a background thread while
candidates go on, and its compiled form takes over when it is ready: C on the CPU
(:mod:`~evomerge.methods.native`), torch.compile elsewhere. Where there is no compiler the eager
form simply goes on; the reason is logged once. ``TORCH_COMPILE_DISABLE=1`` switches both off.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import threading
import types
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch

from evomerge.methods import native
from evomerge.methods.lanes import Fused, Lanes

_log = logging.getLogger(__name__)

COMPILE_AFTER = {"cpu": float(1 << 28), "cuda": float(1 << 32)}
"""Entries times terms that a kernel has to work before it is compiled, by type of device.

On the CPU about a second, several times what the C compiler takes.
"""

SMALLEST = 1 << 14
"""Tensors with fewer entries are not worth compiling for; they use what is there."""

Piece = Callable[[torch.Tensor, Sequence[torch.Tensor], Any, Any, Lanes], None]
"""``piece(out, tensors, numbers, whole, lanes)`` on flat tensors of one length; writes ``out``.

``numbers`` are floats and ``whole`` integers: plain ones, or 0-dim tensors when it is compiled, so
that another candidate's coefficients are the same program.
"""

Run = Callable[[torch.Tensor, Sequence[torch.Tensor], Sequence[float], Sequence[int]], None]
"""A compiled piece, on contiguous tensors of equally many entries, in any shapes."""


@dataclasses.dataclass(frozen=True)
class Program:
    """What is to be compiled.

    Attributes:
        macros: The function in the terms of ``native.c``, with everything that it depends on
            beside its arguments.
        piece: The function itself.
        n_numbers: How many floats it takes.
        n_whole: How many integers it takes.
        wide: dtype of its floats.
    """

    macros: Mapping[str, int]
    piece: Piece
    n_numbers: int
    n_whole: int
    wide: torch.dtype


@dataclasses.dataclass
class _Kernel:
    """A program for given dtypes and device."""

    work: float = 0.0
    run: Run | None = None
    thread: threading.Thread | None = None


_kernels: dict[Hashable, _Kernel] = {}


def ready(program: Program, out: torch.Tensor, tensors: Sequence[torch.Tensor]) -> Run | None:
    """The compiled form of a program, or None as long as the eager one has to do.

    Args:
        program: What is about to be run.
        out: Where it writes.
        tensors: What it reads, as many entries each as ``out``.
    """
    if os.environ.get("TORCH_COMPILE_DISABLE") == "1":
        return None
    if any(t.data_ptr() % t.element_size() or not t.is_contiguous() for t in (out, *tensors)):
        return None  # mapped from a file where nothing aligns it, say
    dtypes = (out.dtype, *(t.dtype for t in tensors))
    key = (*program.macros.items(), dtypes, out.device)
    if out.numel() < SMALLEST:
        known = _kernels.get(key)
        return None if known is None else known.run
    kernel = _kernels.setdefault(key, _Kernel())
    kernel.work += out.numel() * len(tensors)
    if kernel.thread is None and kernel.work > COMPILE_AFTER.get(out.device.type, float("inf")):
        arguments = (kernel, program, dtypes, out.device)
        kernel.thread = threading.Thread(target=_compile, args=arguments, daemon=True)
        kernel.thread.start()
    return kernel.run


def wait() -> None:
    """Returns when every compilation that was started has ended; for benchmarks and tests."""
    for kernel in list(_kernels.values()):
        if kernel.thread is not None:
            kernel.thread.join()


def _compile(
    kernel: _Kernel, program: Program, dtypes: Sequence[torch.dtype], device: torch.device
) -> None:
    """Compiles a program; on success it is ready for use."""
    try:
        if device.type == "cpu":
            kernel.run = native.build(program.macros, dtypes)
        else:
            kernel.run = _by_torch(program, dtypes, device)
    except Exception as e:  # noqa: BLE001 - a missing or broken compiler costs speed, nothing else
        reason = str(e).strip().partition("\n")[0]
        macros = " ".join(f"{name}={value:d}" for name, value in program.macros.items())
        _log.info("merging goes on uncompiled (%s: %s): %s", type(e).__name__, reason, macros)


def _by_torch(program: Program, dtypes: Sequence[torch.dtype], device: torch.device) -> Run:
    """Compiles and runs a program once on made-up tensors."""
    compiled = torch.compile(
        _traced(program.piece),
        dynamic=True,
        fullgraph=True,
        # Products are rounded before they are added, as in the eager form: sign elections are
        # decided by sums that may cancel exactly.
        options={"emulate_precision_casts": True},
    )

    def run(
        out: torch.Tensor,
        tensors: Sequence[torch.Tensor],
        numbers: Sequence[float],
        whole: Sequence[int],
    ) -> None:
        floats = _on_device(tuple(numbers), program.wide, device)
        integers = _on_device(tuple(whole), torch.int32, device)
        flats = [t.detach().view(-1) for t in (out, *tensors)]
        with torch.no_grad():
            compiled(flats[0], flats[1:], floats, integers)

    out, *tensors = (torch.zeros(SMALLEST + 1, dtype=d, device=device) for d in dtypes)
    run(out, tensors, [1.0] * program.n_numbers, [1] * program.n_whole)
    return run


@functools.lru_cache(maxsize=1 << 12)
def _on_device(
    values: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Arguments of a program, copied once: all tensors of a group have the same coefficients."""
    return torch.tensor(values, dtype=dtype, device=device)


def _traced(piece: Piece) -> Callable[..., None]:
    """The piece as a function of tensors only, so that coefficients are no part of the program."""

    def traced(
        out: torch.Tensor,
        tensors: Sequence[torch.Tensor],
        floats: torch.Tensor,
        integers: torch.Tensor,
    ) -> None:
        piece(out, tensors, floats.unbind(), integers.unbind(), Fused(out))

    # torch keeps at most a handful of programs per code object: every kernel gets its own.
    code = traced.__code__.replace(co_name=traced.__name__)
    return types.FunctionType(code, traced.__globals__, closure=traced.__closure__)
