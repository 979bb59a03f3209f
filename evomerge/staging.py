"""Where a pool's checkpoints lie on this machine: under other roots, or copied to its own disk.

The driver names a folder; a worker on another node finds the same checkpoint there, under another
root (``executor.paths``, or ``EVOMERGE_ROOTS`` where the nodes differ), or in the hub's cache.
With ``executor.stage`` the node then copies it once to a folder of its own, for all its workers:
where checkpoints lie on a remote file system, mapping them would read them again and again. What
was moved is hashed once, and has to be what the driver hashed.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from evomerge.adapter import Adapter
from evomerge.cache import cache_folder, locked
from evomerge.checkpoint import Checkpoint, locate, read_tensors
from evomerge.errors import CheckpointError, ConfigError
from evomerge.experts import ExpertPool

ROOTS = "EVOMERGE_ROOTS"
"""Environment variable of a node: ``/shared=/mnt/shared``, several with ``:`` between them."""
_SIDE = {".json", ".jinja", ".model", ".txt", ".py"}
_COMPLETE = ".complete"
"""In a copy that was hashed, and is what the driver has."""
_PIECE = 16 << 20


def pool_here(
    pool: ExpertPool, *, paths: Mapping[str, str] | None = None, stage: str | None = None
) -> ExpertPool:
    """The same pool, its checkpoints where this machine has them.

    Args:
        pool: As the driver opened it.
        paths: Root on the driver to root here; ``EVOMERGE_ROOTS`` of this machine comes first.
        stage: Folder on this machine's disk to copy the checkpoints to; None: they are not copied.

    Raises:
        ConfigError: ``EVOMERGE_ROOTS`` cannot be read.
        CheckpointError: A checkpoint is nowhere, is another one, or does not fit on the disk.
    """
    roots = [*_roots(os.environ.get(ROOTS, "")), *(paths or {}).items()]
    base = _here(pool.base.as_stored, None, roots, stage) if pool.base else None
    experts = [_here(e.as_stored, base, roots, stage) for e in pool.experts]
    return ExpertPool.of(base, experts, pool.spelling)


def _here(
    checkpoint: Checkpoint,
    base: Checkpoint | None,
    roots: list[tuple[str, str]],
    stage: str | None,
) -> Checkpoint:
    """A checkpoint where it is on this machine; an adapter on its base where that is."""
    own = checkpoint.own if isinstance(checkpoint, Adapter) else checkpoint
    folder = _found(own, roots)
    _check_headers(own, folder)
    found = _at(checkpoint, folder, base)
    if stage is not None:
        content = checkpoint.content or found.audited().content
        return _staged(found, content, Path(stage).expanduser(), base)
    if folder == own.folder:
        return dataclasses.replace(found, content=checkpoint.content)
    lock = cache_folder() / "audit" / f"{checkpoint.content[:32]}.lock"
    with locked(lock):  # one worker reads it all
        return _same(found, checkpoint.content)


def _at(checkpoint: Checkpoint, folder: Path, base: Checkpoint | None) -> Checkpoint:
    """The checkpoint with its files in another folder, not yet hashed."""
    if not isinstance(checkpoint, Adapter):
        return dataclasses.replace(checkpoint, folder=folder, content="")
    assert base is not None  # noqa: S101 - an adapter was opened on one
    own = dataclasses.replace(checkpoint.own, folder=folder)
    return dataclasses.replace(checkpoint, folder=folder, own=own, base=base, content="")


def _same(found: Checkpoint, content: str) -> Checkpoint:
    """``found`` with its content hash, which has to be the driver's."""
    hashed = found.audited()
    if content and hashed.content != content:
        raise CheckpointError(
            f"{found.name}: expected the driver's weights, sha256 {content[:12]}..., got "
            f"{hashed.content[:12]}... in {found.folder} on {platform.node()}. Copy the "
            "checkpoint there again, or correct executor.paths."
        )
    return hashed


def _roots(text: str) -> Iterator[tuple[str, str]]:
    for part in filter(None, text.split(os.pathsep)):
        there, equals, here = part.partition("=")
        if not (there and equals and here):
            raise ConfigError(
                f"{ROOTS}: expected ROOT=ROOT pairs with {os.pathsep!r} between them, such as "
                f"/shared=/mnt/shared, got {text!r}."
            )
        yield there, here


def _found(checkpoint: Checkpoint, roots: list[tuple[str, str]]) -> Path:
    """The folder on this machine: under another root, the driver's own, or the hub's cache."""
    folder = checkpoint.folder
    tried = []
    for there, here in roots:
        if folder.is_relative_to(Path(there).expanduser()):
            tried.append(Path(here) / folder.relative_to(Path(there).expanduser()))
    tried.append(folder)
    for place in tried:
        if place.is_dir():
            return place
    if folder.parent.name == "snapshots":  # of the hub's cache: this revision, and no other
        return locate(checkpoint.name, checkpoint.source.partition("@")[0], folder.name)
    raise CheckpointError(
        f"{checkpoint.name}: {platform.node()} has none of {', '.join(map(str, tried))}. Mount "
        f"the driver's {folder} there, or say where it is: executor.paths, or {ROOTS}=ROOT=ROOT "
        "in the environment of that node's `ray start`."
    )


def _check_headers(checkpoint: Checkpoint, folder: Path) -> None:
    """Cheap, and enough to tell one checkpoint of a family from most others."""
    files = sorted({t.file for t in checkpoint.tensors.values()})
    for file in files:
        if not (folder / file).is_file():
            raise CheckpointError(
                f"{checkpoint.name}: {folder} on {platform.node()} has no {file}, which the "
                "driver's copy has. Copy the checkpoint there again."
            )
    if read_tensors(checkpoint.name, folder, files) != dict(checkpoint.tensors):
        raise CheckpointError(
            f"{checkpoint.name}: {folder} on {platform.node()} holds other tensors than the "
            f"driver's {checkpoint.folder}. Copy the checkpoint there again."
        )


def _staged(found: Checkpoint, content: str, stage: Path, base: Checkpoint | None) -> Checkpoint:
    """The copy in ``stage``, made by the first worker of the machine while the others wait."""
    own = found.own if isinstance(found, Adapter) else found
    copy = stage / content[:32]
    moved = _at(found, copy, base)
    with locked(stage / f"{content[:32]}.lock"):
        if not (copy / _COMPLETE).exists():
            _make(copy)
            began = any(copy.iterdir())
            _copy_all(own, copy)
            try:
                _check(moved, content)
            except CheckpointError:
                shutil.rmtree(copy)
                if not began:
                    raise
                copy.mkdir()  # what an earlier try left there was damaged
                _copy_all(own, copy)
                _check(moved, content)
            (copy / _COMPLETE).touch()
    return dataclasses.replace(moved, content=content)


def _check(moved: Checkpoint, content: str) -> None:
    own = moved.own if isinstance(moved, Adapter) else moved
    _check_headers(own, own.folder)
    _same(moved, content)


def _copy_all(checkpoint: Checkpoint, copy: Path) -> None:
    """Copies weights and what lies beside them; goes on where an earlier try ended.

    Raises:
        CheckpointError: The disk has not enough room, which is asked before anything is written.
    """
    weights = {t.file for t in checkpoint.tensors.values()}
    files = [
        p
        for p in sorted(checkpoint.folder.iterdir())
        if p.is_file() and (p.name in weights or p.suffix in _SIDE)
    ]
    missing = [p for p in files if not (copy / p.name).exists()]
    needed = sum(p.stat().st_size - _size(_part(copy / p.name)) for p in missing)
    free = shutil.disk_usage(copy).free
    if needed > free:
        raise CheckpointError(
            f"{checkpoint.name}: a copy in executor.stage takes {needed / 1e9:,.2f} GB more, "
            f"{copy.parent} on {platform.node()} has {free / 1e9:,.2f} GB free. Make room there, "
            "choose another folder, or leave executor.stage out."
        )
    try:
        for path in missing:
            _copy(path, copy / path.name)
    except OSError as e:
        raise CheckpointError(
            f"{checkpoint.name}: {checkpoint.folder} cannot be copied to {copy} on "
            f"{platform.node()}: {e}. What was copied stays; the same command goes on from there."
        ) from e


def _copy(path: Path, to: Path) -> None:
    """One file, which has its name only once all of it is on the disk."""
    part, size = _part(to), path.stat().st_size
    if _size(part) > size:
        part.unlink()
    with path.open("rb") as source, part.open("ab") as target:
        source.seek(target.tell())
        shutil.copyfileobj(source, target, _PIECE)
        target.flush()
        os.fsync(target.fileno())
    part.replace(to)


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _make(copy: Path) -> None:
    try:
        copy.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise CheckpointError(
            f"executor.stage: {copy.parent} cannot be written on {platform.node()}: {e}. Choose a "
            "folder on that node's own disk."
        ) from e
