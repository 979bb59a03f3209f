"""The weights of an export: safetensors files, written tensor by tensor.

A file counts as finished once a note lies beside it, which is written when the file is on disk.
The note holds the file's sha256 and what the file adds to the realised share of the merge, so that
an export that goes on after a kill trusts nothing that it has not checked, and says the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.checkpoint import INDEX
from evomerge.materialize import Merger, rows
from evomerge.methods.rounding import NARROW
from evomerge.realised import Realised, sample
from evomerge.recipe import Recipe

if TYPE_CHECKING:
    import torch

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}
"""torch's name of a dtype to safetensors'."""
_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2}
_BYTES |= {"I16": 2, "U16": 2}
_NOTE = ".done"


@dataclasses.dataclass(frozen=True)
class Item:
    """One tensor to write; ``merged`` is False for one that is copied from the anchor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    merged: bool

    @property
    def n_bytes(self) -> int:
        """Its size in the file."""
        n = _BYTES.get(self.dtype, 1)
        for s in self.shape:
            n *= s
        return n


def write_weights(
    folder: Path, merger: Merger, recipe: Recipe, items: Sequence[Item], limit: int
) -> Realised:
    """Writes the shards that are not there yet, and the index where there are several.

    Args:
        folder: Where to; may hold finished shards of the same recipe, items and limit.
        merger: Merges the tensors.
        recipe: Their coefficients.
        items: What to write, in order.
        limit: Bytes per shard; a larger tensor gets its own.

    Returns:
        How much of the merge the rounding left, over all shards.
    """
    shards = _shards(items, limit)
    coefficients = dict(rows(recipe))
    realised = Realised()
    for name, shard in shards.items():
        header = _header(shard)
        sums = _kept(folder / name, header)
        if sums is None:
            sums = _write_shard(folder / name, header, merger, coefficients, _ordered(shard))
        realised.wanted += sums.wanted
        realised.got += sums.got
        realised.missed += sums.missed
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(i.n_bytes for i in items)},
            "weight_map": {i.name: name for name, shard in shards.items() for i in shard},
        }
        write_text(folder / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")
    return realised


def remove_notes(folder: Path) -> None:
    """Removes what only an unfinished export needs."""
    for note in folder.glob(f"*{_NOTE}"):
        note.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a small file that is on disk when this returns."""
    with path.open("w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())


def _shards(items: Sequence[Item], limit: int) -> dict[str, list[Item]]:
    """File name to what it holds."""
    found: list[list[Item]] = []
    used = 0
    for item in items:
        if not found or used + item.n_bytes > limit:
            found.append([])
            used = 0
        found[-1].append(item)
        used += item.n_bytes
    n = len(found)
    if n == 1:
        return {"model.safetensors": found[0]}
    return {f"model-{i:05d}-of-{n:05d}.safetensors": shard for i, shard in enumerate(found, 1)}


def _ordered(items: Sequence[Item]) -> list[Item]:
    """Wide types first, so that every tensor is aligned within the mapped file."""
    return sorted(items, key=lambda i: (-_BYTES.get(i.dtype, 1), i.name))


def _header(items: Sequence[Item]) -> bytes:
    """The beginning of a safetensors file: 8 bytes of header size, and a JSON header."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for item in _ordered(items):
        offsets = [end, end + item.n_bytes]
        header[item.name] = {
            "dtype": item.dtype, "shape": list(item.shape), "data_offsets": offsets,
        }  # fmt: skip
        end = offsets[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _kept(path: Path, header: bytes) -> Realised | None:
    """The sums of a shard that an earlier export finished; None where it has to be written."""
    try:
        note = json.loads(path.with_name(path.name + _NOTE).read_text())
        with path.open("rb") as f:
            if f.read(len(header)) != header:
                return None
            f.seek(0)
            if hashlib.file_digest(f, "sha256").hexdigest() != note["sha256"]:
                return None
        return Realised(**note["realised"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_shard(
    path: Path,
    header: bytes,
    merger: Merger,
    coefficients: Mapping[str, Mapping[str, Sequence[float]]],
    items: Sequence[Item],
) -> Realised:
    """One file and its note."""
    import torch

    realised = Realised()
    digest = hashlib.sha256(header)
    with path.open("wb") as f, torch.no_grad():
        f.write(header)
        for item in items:
            if item.merged:
                tensor = _merged(merger, item, coefficients[item.name], realised)
            else:
                tensor = merger.pool.anchor.tensor(item.name)
            raw = _raw(tensor)
            digest.update(raw)
            f.write(raw)
            del raw, tensor  # before the next one is made
        f.flush()
        os.fsync(f.fileno())
    note = {"sha256": digest.hexdigest(), "realised": dataclasses.asdict(realised)}
    write_text(path.with_name(path.name + _NOTE), json.dumps(note))
    return realised


def _merged(
    merger: Merger, item: Item, coefficients: Mapping[str, Sequence[float]], realised: Realised
) -> torch.Tensor:
    """One merged tensor; adds to ``realised`` what its rounding left of it."""
    import torch

    dtypes = {v: getattr(torch, k) for k, v in DTYPES.items()}
    before: list[tuple[torch.Tensor, float]] = []
    if merger.pool.base and dtypes[item.dtype] in NARROW:
        exact = torch.empty(item.shape, dtype=torch.float32)
        merger.merge_tensor(item.name, coefficients, exact)
        before = [sample(merger.pool.base.tensor(item.name)), sample(exact)]
        del exact  # two of them at once would be the peak of an export
    tensor = torch.empty(item.shape, dtype=dtypes[item.dtype])
    merger.merge_tensor(item.name, coefficients, tensor)
    if before:
        (b, count), (e, _) = before
        realised.add(b, e, sample(tensor)[0], count)
    merger.forget(item.name)
    return tensor


def _raw(tensor: torch.Tensor) -> memoryview:
    import torch

    array: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)
