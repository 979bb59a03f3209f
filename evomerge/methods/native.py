"""``native.c``, compiled by the machine's own C compiler for one set of macros and loaded.

A library is kept in ``<cache>/native``, under the hash of everything that it is made of: source,
macros, compiler, flags, and what ``-march=native`` means on this machine. Its file ends in the
digest of what is before it, so that one that was cut short or written over is made again, never
loaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from evomerge.cache import appearing, cache_folder

SOURCES = tuple(Path(__file__).with_name(n) for n in ("native_floats.c", "native.c"))
_FLAGS = ("-O3", "-ffp-contract=off", "-std=gnu11", "-shared", "-fPIC")
_NATIVE = (("-march=native",), ("-mcpu=native",), ())  # the first that the compiler knows
_SWITCHES = ("LINEAR", "FUSED", "RANDOM", "RANKED", "BY_ENTRY", "BOUNDED", "NORMALIZE", "ELECTION")
_DTYPES = {
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float32: "float32",
    torch.float64: "float64",
}
_DIGEST = 32  # bytes of a sha256
_PER_THREAD = 1 << 18
"""Entries that are worth starting a thread for."""


def build(
    macros: Mapping[str, int], dtypes: Sequence[torch.dtype]
) -> Callable[[torch.Tensor, Sequence[torch.Tensor], Sequence[float], Sequence[int]], None]:
    """The function on CPU tensors: a :data:`evomerge.methods.compiled.Run`.

    Args:
        macros: ``K`` and those of ``native.c``'s switches that are not 0.
        dtypes: Of what is written and of all that is read.

    Raises:
        OSError: Where there is no compiler, or what it makes cannot be loaded.
        KeyError: For a dtype that is not a float of 16, 32 or 64 bits.
        subprocess.SubprocessError: Where it cannot compile.
    """
    source = "".join([_defines(macros, dtypes), *(path.read_text() for path in SOURCES)])
    function = _library(source).merge
    function.restype = None
    function.argtypes = [ctypes.c_int32, ctypes.c_int32, *[ctypes.c_void_p] * 3]

    def run(
        out: torch.Tensor,
        tensors: Sequence[torch.Tensor],
        numbers: Sequence[float],
        whole: Sequence[int],
    ) -> None:
        addresses = [t.data_ptr() for t in (out, *tensors)]
        arguments = (
            (ctypes.c_void_p * len(addresses))(*addresses),
            (ctypes.c_double * len(numbers))(*numbers),
            (ctypes.c_int32 * len(whole))(*whole),
        )
        _spread(function, out.numel(), arguments)

    return run


def _spread(function: Any, n: int, arguments: tuple[Any, ...]) -> None:
    """Calls it for all n entries, in as many threads as torch would use; ctypes drops the GIL."""
    threads = torch.get_num_threads()
    shares = min(threads, n // _PER_THREAD)
    if shares < 2:
        function(0, n, *arguments)
        return
    edges = [n * i // shares for i in range(shares + 1)]
    others = [
        _helpers(threads - 1).submit(function, *ends, *arguments)
        for ends in itertools.pairwise(edges[1:])
    ]
    function(0, edges[1], *arguments)
    for other in others:
        other.result()


@functools.cache
def _helpers(n: int) -> ThreadPoolExecutor:
    """Threads that are kept: starting one takes longer than merging a small tensor."""
    return ThreadPoolExecutor(n, "evomerge-merge")


if hasattr(os, "register_at_fork"):  # a child has none of its parent's threads
    os.register_at_fork(after_in_child=_helpers.cache_clear)


def _defines(macros: Mapping[str, int], dtypes: Sequence[torch.dtype]) -> str:
    """The macros that ``native.c`` asks for, as text in front of it."""
    k = macros["K"]
    out, base = (_DTYPES[d] for d in dtypes[:2])
    double = dtypes[0] == torch.float64
    linear = bool(macros.get("LINEAR"))
    read = [_DTYPES[d] for d in (dtypes[1 : 1 + k] if linear else dtypes[2 : 2 + k])]
    little = sys.byteorder == "little"  # the first of two numbers is a word's lower half
    narrow = {out, base, *read}
    given: dict[str, Any] = {
        "OUT": out,
        "BASE": base,
        **{f"TYPE_{i}": dtype for i, dtype in enumerate(read)},
        "WIDE": "double" if double else "float",
        "BITS": "uint64_t" if double else "uint32_t",
        "SIGNED": "int64_t" if double else "int32_t",
        "PAIRS": int(little and narrow in ({"bfloat16"}, {"float16"})),
        "EACH(X)": " ".join(f"X({i})" for i in range(k)),
        "REST(X)": " ".join(f"X({i})" for i in range(1, k)),
        "K": k,
        **{name: int(macros.get(name, 0)) for name in _SWITCHES},
    }
    return "".join(f"#define {name} {value}\n" for name, value in given.items())


def _library(source: str) -> ctypes.CDLL:
    """A C source, compiled or found in the cache, and loaded."""
    command, compiler = _compiler()
    key = hashlib.sha256(json.dumps([source, command, compiler]).encode()).hexdigest()[:32]
    path = cache_folder() / "native" / f"{key}.so"
    if _is_whole(path):
        with contextlib.suppress(OSError):  # of a file system that runs nothing
            return ctypes.CDLL(str(path))
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "merge.so")
        compile_ = [*command, "-x", "c", "-", "-o", str(made)]
        subprocess.run(compile_, input=source.encode(), capture_output=True, check=True)
        binary = made.read_bytes()
        made.write_bytes(binary + hashlib.sha256(binary).digest())
        with contextlib.suppress(OSError), appearing(path) as part:  # a full disk, not our folder
            shutil.copyfile(made, part)
        return ctypes.CDLL(str(made))


def _is_whole(path: Path) -> bool:
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-_DIGEST]).digest() == content[-_DIGEST:]


@functools.cache
def _compiler() -> tuple[tuple[str, ...], str]:
    """Compiler with flags, and what it says of itself and of this machine.

    ``$CC`` or the first of cc, gcc and clang on the path.
    """
    given = shlex.split(os.environ.get("CC", ""))
    found = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if not given and found is None:
        raise FileNotFoundError("no cc, gcc or clang on the path, and CC is not set")
    for flags in _NATIVE:
        command = (*(given or [str(found)]), *_FLAGS, *flags)
        # Its predefined macros name its version and every instruction set that it may use.
        ask = [*command, "-dM", "-E", "-x", "c", os.devnull]
        asked = subprocess.run(ask, capture_output=True, check=False)
        if asked.returncode == 0:
            return command, asked.stdout.decode()
    raise OSError(f"{' '.join(command)} cannot preprocess an empty file")
