"""A recipe -> a checkpoint that anyone can load.

The folder holds sharded safetensors, the configuration and tokenizer of the base model (of the
first expert where there is no base), ``recipe.yaml``, ``mergekit.yaml`` where mergekit computes
the same, and a model card. Tensors are merged and written one by one, so memory holds one tensor.
It is written beside its destination and renamed when every byte is on disk: a folder that has the
name is complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import shutil
import struct
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.card import ModelCard, render_card
from evomerge.checkpoint import INDEX, Checkpoint, cache_folder
from evomerge.errors import CheckpointError, ConfigError, ExportError
from evomerge.experts import ExpertPool
from evomerge.materialize import Merger, check_recipe, rows
from evomerge.mergekit import to_mergekit
from evomerge.methods.rounding import NARROW
from evomerge.realised import Realised, sample
from evomerge.recipe import ModelRef, Recipe

if TYPE_CHECKING:
    import torch

__all__ = ["ModelCard", "export", "pool_of"]

_SUPPORT = (
    "generation_config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "chat_template*", "additional_chat_templates", "*.jinja", "*.model",
    "tekken.json", "preprocessor_config.json", "processor_config.json", "LICENSE*", "NOTICE*",
)  # fmt: skip
_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}
_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2}
_BYTES |= {"I16": 2, "U16": 2}
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_SPARE = 1 << 20  # bytes for headers, card and recipe
_SUFFIX = ".evomerge-tmp"


@dataclasses.dataclass(frozen=True)
class _Item:
    """One tensor to write; ``merged`` is False for one that is copied from the anchor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    merged: bool

    @property
    def n_bytes(self) -> int:
        n = _BYTES.get(self.dtype, 1)
        for s in self.shape:
            n *= s
        return n


def pool_of(recipe: Recipe) -> ExpertPool:
    """Opens the models of a recipe where it says they lie.

    Raises:
        CheckpointError: A model that is not there, damaged, or does not fit the others.
        ConfigError: The weights found are not those that the recipe was made with, or the
            recipe does not fit the models.
    """
    pool = ExpertPool.open(
        recipe.base.path if recipe.base else None, {m.name: m.path for m in recipe.models}
    )
    check_recipe(recipe, pool)
    return pool


def export(
    recipe: Recipe,
    out: Path,
    *,
    pool: ExpertPool | None = None,
    dtype: str = "auto",
    max_shard_size: int | str = "5GB",
    card: ModelCard | None = None,
    overwrite: bool = False,
    on_rounded: Callable[[str], None] | None = None,
) -> Path:
    """Writes the merged checkpoint.

    Args:
        recipe: What to merge.
        out: Folder to write; must not exist or be empty, unless it is an earlier export of the
            same recipe in the same dtype (then nothing is done) or ``overwrite`` is set.
        pool: The recipe's models where they are open already; else :func:`pool_of`.
        dtype: ``"auto"`` (as the anchor was saved), ``"float32"``, ``"bfloat16"`` or
            ``"float16"``.
        max_shard_size: Bytes, or a text such as ``"5GB"``; a larger tensor gets its own shard.
        card: Results and text for the model card.
        overwrite: Whether to replace what ``out`` holds.
        on_rounded: Called with a sentence on the realised coefficients where the merge of task
            vectors was rounded to a dtype narrower than float32; the card has it too.

    Returns:
        ``out`` as an absolute path.

    Raises:
        ExportError: ``out`` is taken, or could not be written (a full disk: needed and free
            bytes); nothing of the attempt is left behind.
        ConfigError: A recipe that does not fit its models, or an unknown dtype or size.
        CheckpointError: Models that cannot be opened.
    """
    if dtype != "auto" and dtype not in _DTYPES:
        raise ConfigError(f"dtype must be 'auto' or one of {sorted(_DTYPES)}, got {dtype!r}.")
    limit = _parse_size(max_shard_size)
    out = Path(out).expanduser().absolute()
    if pool is None:
        pool = pool_of(recipe)
    else:
        check_recipe(recipe, pool)
    recipe = located(recipe, pool)
    items = _items(pool, dtype)
    if not overwrite and _taken(out, recipe, items):
        return out
    support = _support_files(pool.anchor.folder, pool.anchor.config)
    needed = sum(i.n_bytes for i in items) + sum(p.stat().st_size for p in support) + _SPARE
    card = card or ModelCard()
    try:
        with _folder(out, needed) as folder:
            merged = {i.name: i.dtype for i in items if i.merged}
            merger = Merger(pool, recipe.method, recipe.fixed, cache=cache_folder(), keep=False)
            realised = _write_weights(folder, merger, recipe, items, limit)
            rounded = realised.sentence(
                _common_dtype(merged) or "narrow dtypes", str(merger.fixed["rounding"])
            )
            if rounded and on_rounded:
                on_rounded(rounded)
            _write_config(folder, pool.anchor, dtype)
            for path in support:
                _copy(path, folder / path.relative_to(pool.anchor.folder))
            note = ""
            try:
                _write(folder / "mergekit.yaml", to_mergekit(recipe, _common_dtype(merged)))
            except ConfigError as e:
                note = str(e)
            _write(folder / "recipe.yaml", recipe.to_yaml())
            _write(
                folder / "README.md",
                render_card(recipe, card, out.name, note, rounded, dtype=dtype),
            )
    except ExportError:
        raise
    except OSError as e:
        raise ExportError(
            f"could not write {out}: {e.strerror or e}. It needs {_gigabytes(needed)}; "
            f"{_gigabytes(_free(out))} are free. Nothing was left behind."
        ) from e
    return out


def _parse_size(size: int | str) -> int:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    unit = _UNITS.get(match.group(2).upper()) if match else None
    if match is None or unit is None or float(match.group(1)) * unit < 1:
        raise ConfigError(f"max_shard_size: expected bytes or a text such as '5GB', got {size!r}.")
    return int(float(match.group(1)) * unit)


def located(recipe: Recipe, pool: ExpertPool) -> Recipe:
    """The recipe with content hashes and absolute paths: it works from any folder.

    Args:
        recipe: Any recipe of ``pool``'s models.
        pool: Those models, opened.
    """

    def place(ref: ModelRef, found: Checkpoint) -> ModelRef:
        local = Path(found.source).expanduser().is_dir()
        path = str(found.folder) if local else found.source
        return ModelRef(ref.name, path, found.content or ref.content)

    return dataclasses.replace(
        recipe,
        models=tuple(place(m, e) for m, e in zip(recipe.models, pool.experts, strict=True)),
        base=place(recipe.base, pool.base) if recipe.base and pool.base else recipe.base,
    )


def _items(pool: ExpertPool, dtype: str) -> list[_Item]:
    """What to write, in the anchor's order; a tied head is left out, its embedding stands."""
    config = pool.anchor.config
    wanted = dtype
    if dtype == "auto":  # what transformers loads the anchor in
        wanted = str(config.get("dtype") or config.get("torch_dtype") or "")
        wanted = wanted.removeprefix("torch.")
    shapes = {t.name: t.shape for t in pool.tensors}
    items = []
    for info in pool.anchor.tensors.values():
        if info.name in shapes:
            items.append(
                _Item(info.name, info.shape, _DTYPES.get(wanted, info.dtype), merged=True)
            )
        elif not info.is_float:
            items.append(_Item(info.name, info.shape, info.dtype, merged=False))
    return items


def _taken(out: Path, recipe: Recipe, items: Sequence[_Item]) -> bool:
    """True where ``out`` is this very export, False where it is free."""
    if not out.exists() and not out.is_symlink():
        return False
    if not out.is_dir():
        raise ExportError(f"{out} exists and is no folder; give another place for the export.")
    if not any(out.iterdir()):
        return False
    with contextlib.suppress(OSError, ConfigError, CheckpointError):
        found = Recipe.from_yaml((out / "recipe.yaml").read_text()).id
        tensors = Checkpoint.open("export", str(out)).tensors
        if found == recipe.id and {n: t.dtype for n, t in tensors.items()} == {
            i.name: i.dtype for i in items
        }:
            return True
    raise ExportError(
        f"{out} is not empty and holds no export of this recipe in this dtype; give another "
        "folder or allow overwriting (--overwrite)."
    )


def _support_files(folder: Path, config: Mapping[str, Any]) -> list[Path]:
    """Tokenizer, generation settings, chat template, licence: small files beside the weights."""
    patterns = [*_SUPPORT, *(["*.py"] if config.get("auto_map") else [])]
    found = {p for pattern in patterns for p in folder.glob(pattern)}
    files = {f for p in found for f in (p.rglob("*") if p.is_dir() else [p]) if f.is_file()}
    return sorted(files)


@contextlib.contextmanager
def _folder(out: Path, needed: int) -> Iterator[Path]:
    """A folder beside ``out`` that takes its name when the block ends, or vanishes."""
    made = [p for p in [out.parent, *out.parent.parents] if not p.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    folder: Path | None = None
    lock = -1
    try:
        _clean_dead(out)
        if needed > _free(out):
            raise ExportError(
                f"not enough room for {out}: it needs {_gigabytes(needed)}, "
                f"{_gigabytes(_free(out))} are free."
            )
        folder = out.with_name(f".{out.name}.{uuid.uuid4().hex[:12]}{_SUFFIX}")
        folder.mkdir()
        lock = os.open(folder, os.O_RDONLY)
        with contextlib.suppress(OSError):  # file systems without locks: no cleaning either
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
        _sync_folders(folder)
        _replace(folder, out)
        made = []
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()
        if lock >= 0:
            os.close(lock)


def _replace(folder: Path, out: Path) -> None:
    """Renames ``folder`` to ``out``; what ``out`` held goes only once that has worked."""
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        old = out.with_name(f".{out.name}.{uuid.uuid4().hex[:12]}.old{_SUFFIX}")
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
    _sync(out.parent)


def _clean_dead(out: Path) -> None:
    """Removes what exports to ``out`` left that were killed; live ones hold a lock."""
    for folder in out.parent.iterdir():
        if not (folder.name.startswith(f".{out.name}.") and folder.name.endswith(_SUFFIX)):
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


def _write_weights(
    folder: Path, merger: Merger, recipe: Recipe, items: Sequence[_Item], limit: int
) -> Realised:
    shards: list[list[_Item]] = []
    used = 0
    for item in items:
        if not shards or used + item.n_bytes > limit:
            shards.append([])
            used = 0
        shards[-1].append(item)
        used += item.n_bytes
    coefficients = dict(rows(recipe))
    realised = Realised()
    n = len(shards)
    names = [f"model-{i + 1:05d}-of-{n:05d}.safetensors" for i in range(n)]
    names = names if n > 1 else ["model.safetensors"]
    for name, shard in zip(names, shards, strict=True):
        _write_shard(folder / name, merger, coefficients, shard, realised)
    if n > 1:
        index = {
            "metadata": {"total_size": sum(i.n_bytes for i in items)},
            "weight_map": {
                i.name: name for name, shard in zip(names, shards, strict=True) for i in shard
            },
        }
        _write(folder / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")
    return realised


def _write_shard(
    path: Path,
    merger: Merger,
    coefficients: Mapping[str, Mapping[str, Sequence[float]]],
    items: Sequence[_Item],
    realised: Realised,
) -> None:
    """One safetensors file, tensor by tensor: 8 bytes of header size, JSON header, raw data."""
    import torch

    # Wide types first, so that every tensor is aligned within the mapped file.
    items = sorted(items, key=lambda i: (-_BYTES.get(i.dtype, 1), i.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for item in items:
        offsets = [end, end + item.n_bytes]
        header[item.name] = {
            "dtype": item.dtype, "shape": list(item.shape), "data_offsets": offsets,
        }  # fmt: skip
        end = offsets[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    dtypes = {v: getattr(torch, k) for k, v in _DTYPES.items()}
    with path.open("wb") as f, torch.no_grad():
        f.write(struct.pack("<Q", len(text)) + text)
        for item in items:
            if item.merged:
                tensor = torch.empty(item.shape, dtype=dtypes[item.dtype])
                merger.merge_tensor(item.name, coefficients[item.name], tensor)
                if merger.pool.base and tensor.dtype in NARROW:
                    exact = torch.empty(item.shape, dtype=torch.float32)
                    merger.merge_tensor(item.name, coefficients[item.name], exact)
                    base = merger.pool.base.tensor(item.name)
                    (b, count), (e, _), (c, _) = map(sample, (base, exact, tensor))
                    realised.add(b, e, c, count)
                merger.forget(item.name)
            else:
                tensor = merger.pool.anchor.tensor(item.name)
            f.write(_raw(tensor))
        f.flush()
        os.fsync(f.fileno())


def _raw(tensor: torch.Tensor) -> memoryview:
    import torch

    array: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _write_config(folder: Path, anchor: Checkpoint, dtype: str) -> None:
    config = dict(anchor.config)
    if dtype != "auto":
        config = _with_dtype(config, dtype)
        config["dtype"] = dtype
        config.pop("torch_dtype", None)  # its older name
    _write(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")


def _with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Sets the dtype wherever the configuration, or one nested in it, names one."""
    return {
        k: dtype
        if k in {"dtype", "torch_dtype"} and isinstance(v, str)
        else _with_dtype(v, dtype)
        if isinstance(v, Mapping)
        else v
        for k, v in config.items()
    }


def _common_dtype(merged: Mapping[str, str]) -> str | None:
    names = {v: k for k, v in _DTYPES.items()}
    found = {names[d] for d in merged.values()}
    return found.pop() if len(found) == 1 else None


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)  # the content: the hub's cache holds links
    _sync(target)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_folders(folder: Path) -> None:
    for path in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        _sync(path)


def _free(out: Path) -> int:
    place = next(p for p in [out, *out.parents] if p.exists())
    return shutil.disk_usage(place).free


def _gigabytes(n: int) -> str:
    return f"{n / 1e9:.2f} GB ({n} bytes)"
