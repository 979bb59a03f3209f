"""The hidden folder that an export is written into, and how it takes its name.

It lies beside the destination and is named by what is written, so that an export that was killed
is found again by the next one of the same. Whoever writes it holds a lock (flock) on it: a second
export of the same waits, and a folder without a living writer is either taken up or removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from evomerge.errors import ExportError

_SUFFIX = ".evomerge-tmp"


@contextlib.contextmanager
def claimed(out: Path, key: str) -> Iterator[Path]:
    """The folder to write into, locked; removed when the block ends, unless it was published.

    Args:
        out: Where the export is to be in the end; its parents are made.
        key: Says what is written: the same export has the same key. Short, fit for a file name.

    Yields:
        A folder beside ``out``. It holds what an export under the same key left when it was
        killed; everything that other dead exports to ``out`` left is removed.
    """
    made = [p for p in [out.parent, *out.parent.parents] if not p.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    folder: Path | None = None
    lock = -1
    try:
        folder, lock = _take(_hidden(out, key))
        _remove_dead(out, but=folder)
        yield folder
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        for parent in made:  # fails where something lies in them by now, as it should
            with contextlib.suppress(OSError):
                parent.rmdir()
        if lock >= 0:
            os.close(lock)


def publish(folder: Path, out: Path) -> None:
    """Gives ``folder`` the name ``out``, once all of it is on disk.

    What ``out`` held goes only when that has worked.

    Raises:
        OSError: It could not be renamed; ``out`` is as it was.
    """
    for path in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        sync(path)
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        old = _hidden(out, f"{uuid.uuid4().hex[:12]}.old")
        out.rename(old)
        try:
            folder.rename(out)
        except OSError:
            old.rename(out)
            raise
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.unlink(missing_ok=True)
    else:
        folder.rename(out)
    sync(out.parent)


def check_room(out: Path, folder: Path, needed: int) -> None:
    """Raises ExportError where the disk is too small for what is still to be written."""
    there = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    if needed - there > free(out):
        raise ExportError(
            f"not enough room for {out}: it needs {gigabytes(needed)}, "
            f"{gigabytes(free(out))} are free."
        )


def free(out: Path) -> int:
    """Bytes that are free where ``out`` is or would be."""
    place = next(p for p in [out, *out.parents] if p.exists())
    return shutil.disk_usage(place).free


def gigabytes(n: int) -> str:
    """Bytes for people."""
    return f"{n / 1e9:.2f} GB ({n} bytes)"


def sync(path: Path) -> None:
    """Waits until a file, or the list of a folder's files, is on disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _hidden(out: Path, key: str) -> Path:
    return out.with_name(f".{out.name}.{key}{_SUFFIX}")


def _take(folder: Path) -> tuple[Path, int]:
    """Makes or takes up a folder under its lock; waits for whoever holds it.

    On file systems without locks nobody can tell a dead folder from a live one: there the folder
    gets a name of its own, and is not taken up again.
    """
    while True:
        folder.mkdir(exist_ok=True)
        try:
            lock = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue  # published or removed just now
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            os.close(lock)
            with contextlib.suppress(OSError):
                folder.rmdir()
            alone = folder.with_name(folder.name.replace(_SUFFIX, f".{uuid.uuid4().hex}{_SUFFIX}"))
            alone.mkdir()
            return alone, -1
        except BaseException:  # Ctrl-C while waiting
            os.close(lock)
            raise
        if _is(lock, folder):
            return folder, lock
        os.close(lock)  # its last writer renamed or removed it while this one waited


def _is(fd: int, folder: Path) -> bool:
    try:
        there = folder.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _remove_dead(out: Path, but: Path) -> None:
    """Removes what other exports to ``out`` left that were killed; live ones hold a lock."""
    for folder in out.parent.iterdir():
        ours = folder.name.startswith(f".{out.name}.") and folder.name.endswith(_SUFFIX)
        if not ours or folder == but:
            continue
        try:
            lock = os.open(folder, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            pass
        finally:
            os.close(lock)
