"""Which documents of a task belong to the search, select and test splits.

Documents are ordered by a hash of (seed, content), so a split does not depend on the order in
which a data set happens to list them. Documents with the same content go to the same split:
otherwise the search could see what the final table is measured on.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evomerge.errors import ConfigError, TaskError, unknown_name
from evomerge.trial import SPLITS, Split

Sizes = Mapping[Split, int | float | None]
"""Documents per task: a count, a share in (0, 1), or None for the rest."""

DEFAULT_SIZES: Sizes = {"search": 100, "select": 100, "test": None}


def check_sizes(sizes: Mapping[str, Any] | None) -> dict[Split, int | float | None]:
    """Fills in the defaults and refuses what no task could satisfy.

    Args:
        sizes: Split to count, share or None; missing splits keep their default.

    Returns:
        One entry per split, in the order search, select, test.

    Raises:
        UnknownNameError: For a split that does not exist.
        ConfigError: For a size that is neither a count, a share nor None, for two rests, and for
            an empty search split.
    """
    for name in sizes or {}:
        if name not in SPLITS:
            raise unknown_name("split", str(name), SPLITS)
    full: dict[Split, int | float | None] = {}
    for split in SPLITS:
        size = (sizes or {}).get(split, DEFAULT_SIZES[split])
        if isinstance(size, bool) or not (size is None or isinstance(size, int | float)):
            raise ConfigError(
                f"splits.{split} must be a number of documents, a share in (0, 1) or null for the "
                f"rest, got {size!r}."
            )
        if size is not None and (size < 0 or (size >= 1 and size != int(size))):
            raise ConfigError(f"splits.{split} must be a count or a share in (0, 1), got {size}.")
        full[split] = int(size) if size is not None and (size >= 1 or size == 0) else size
    if sum(size is None for size in full.values()) > 1:
        raise ConfigError(f"only one split can be null (the rest), got {full}.")
    if full["search"] == 0:
        raise ConfigError("splits.search must not be 0: the search needs documents.")
    return full


def content_hash(document: Any) -> str:
    """sha256 of the canonical JSON of a document (or of a task's configuration)."""
    text = json.dumps(document, sort_keys=True, ensure_ascii=False, default=_plain)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def digest(hashes: Iterable[str]) -> str:
    """One sha256 for a sequence of hashes."""
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def assign(
    task: str, hashes: Sequence[str], sizes: Mapping[Split, int | float | None], seed: int
) -> dict[Split, tuple[int, ...]]:
    """Deals a task's documents to the splits.

    Groups of equal documents are dealt whole, in the order of sha256(seed, content): each to the
    first split of search, select, test that still has room for all of it. With explicit sizes
    everywhere, what is left over is not used.

    Args:
        task: Name of the task, for messages.
        hashes: n content hashes, in the order of the task's documents.
        sizes: As :func:`check_sizes` returns them.
        seed: Another seed, other splits.

    Returns:
        Split to the ascending indices of its documents.

    Raises:
        TaskError: When there are too few documents.
    """
    n = len(hashes)
    room = _room(task, n, sizes)
    rest = next((split for split, size in sizes.items() if size is None), None)
    groups: dict[str, list[int]] = {}
    for index, content in enumerate(hashes):
        groups.setdefault(content, []).append(index)
    order = sorted(groups, key=lambda c: hashlib.sha256(f"{seed}:{c}".encode()).hexdigest())
    dealt: dict[Split, list[int]] = {split: [] for split in SPLITS}
    for content in order:
        members = groups[content]
        split = next((s for s in SPLITS if len(dealt[s]) + len(members) <= room[s]), rest)
        if split is not None:
            dealt[split] += members
    for split in SPLITS:
        if room[split] and not dealt[split]:
            raise TaskError(
                f"task {task!r}: no documents for the {split} split: of its {n} documents only "
                f"{len(groups)} are different, and equal documents stay together."
            )
    return {split: tuple(sorted(ids)) for split, ids in dealt.items()}


def _room(task: str, n: int, sizes: Mapping[Split, int | float | None]) -> dict[Split, int]:
    """Sizes as counts for a task with n documents."""
    counts = {s: int(n * size) if isinstance(size, float) else size for s, size in sizes.items()}
    wanted = sum(c for c in counts.values() if c is not None)
    room: dict[Split, int] = {s: n - wanted if c is None else c for s, c in counts.items()}
    short = [s for s, c in room.items() if c < 1 and sizes[s] != 0]
    if wanted > n or short:
        asked = ", ".join(f"{s}: {'the rest' if v is None else v}" for s, v in sizes.items())
        raise TaskError(
            f"task {task!r} has {n} documents, too few for the splits ({asked}): "
            + (f"{wanted} are asked for. " if wanted > n else f"{short[0]} would get none. ")
            + "Lower evaluator.splits, or set a split that you do not need to 0."
        )
    return room


def _plain(value: Any) -> Any:
    """What JSON cannot hold, in a form that does not depend on the process."""
    if callable(value):
        try:
            return inspect.getsource(value)
        except (TypeError, OSError):
            return getattr(value, "__qualname__", type(value).__qualname__)
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return f"{type(value).__qualname__}:{value}"
