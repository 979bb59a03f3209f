"""The cache folder: what can be computed again, shared by the runs and workers of a machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def cache_folder() -> Path:
    """Where evomerge keeps what can be computed again: $EVOMERGE_CACHE, else the XDG cache."""
    if folder := os.environ.get("EVOMERGE_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "evomerge"


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write into, which takes its place when the block ends.

    Readers see the old content or the new one, never half; two writers do no harm. A block that
    raises leaves nothing behind.

    Raises:
        OSError: The folder cannot be made or written (a full disk).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o644)  # the machine's other users may share the folder
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Holds a lock file (flock); yields whether it is held, or there is none to be had.

    Where the folder cannot be written, or its file system has no locks, nobody waits: what is
    locked here costs work where it is done twice, and no harm.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("w")
    except OSError:
        yield True
        return
    with handle:
        mine = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            mine = False
        except OSError:  # a file system without locks: every worker makes its own
            pass
        yield mine
