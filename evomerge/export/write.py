"""One export from its beginning to its end."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge import __version__
from evomerge.cache import cache_folder
from evomerge.card import ModelCard, render_card
from evomerge.checkpoint import Checkpoint
from evomerge.errors import CheckpointError, ConfigError, ExportError
from evomerge.experts import ExpertPool
from evomerge.export.destination import check_room, claimed, free, gigabytes, publish, sync
from evomerge.export.shards import DTYPES, Item, remove_notes, write_text, write_weights
from evomerge.materialize import Merger, check_recipe
from evomerge.mergekit import to_mergekit
from evomerge.prepared import source_hash
from evomerge.recipe import ModelRef, Recipe

_SUPPORT = (
    "generation_config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "chat_template*", "additional_chat_templates", "*.jinja", "*.model",
    "tekken.json", "preprocessor_config.json", "processor_config.json", "LICENSE*", "NOTICE*",
)  # fmt: skip
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_SPARE = 1 << 20  # bytes for headers, card and recipe


def pool_of(recipe: Recipe) -> ExpertPool:
    """Opens the models of a recipe where it says they lie.

    Raises:
        CheckpointError: A model that is not there, damaged, or does not fit the others.
        ConfigError: The weights found are not those that the recipe was made with, or the
            recipe does not fit the models.
    """
    pool = ExpertPool.open(
        recipe.base.path if recipe.base else None,
        {m.name: m.path for m in recipe.models},
        tokenizer=recipe.tokenizer or None,
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
            bytes); nothing of the attempt is left behind. Only a killed process leaves something:
            a hidden folder, whose finished shards the next export of the same goes on from.
        ConfigError: A recipe that does not fit its models, or an unknown dtype or size.
        CheckpointError: Models that cannot be opened.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise ConfigError(f"dtype must be 'auto' or one of {sorted(DTYPES)}, got {dtype!r}.")
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
    card = card or ModelCard()
    support = _support_files(pool.anchor.folder, pool.anchor.config)
    beside = {path.relative_to(pool.anchor.folder).as_posix(): path for path in support}
    beside |= {path.name: path for path in card.files}
    sizes = [i.n_bytes for i in items] + [p.stat().st_size for p in beside.values()]
    needed = sum(sizes) + _SPARE
    try:
        with claimed(out, _key(recipe, items, limit)) as folder:
            if not overwrite and _taken(out, recipe, items):
                return out  # by another process, while this one waited for it
            check_room(out, folder, needed)
            merger = Merger(pool, recipe.method, recipe.fixed, cache=cache_folder(), keep=False)
            realised = write_weights(folder, merger, recipe, items, limit)
            common = _common_dtype(items)
            rounded = realised.sentence(common or "narrow dtypes", str(merger.fixed["rounding"]))
            if rounded and on_rounded:
                on_rounded(rounded)
            _write_config(folder, pool.anchor, dtype)
            for name, path in beside.items():
                _copy(path, folder / name)
            note = _write_mergekit(folder / "mergekit.yaml", recipe, common)
            write_text(folder / "recipe.yaml", recipe.to_yaml())
            text = render_card(recipe, card, out.name, note, rounded, dtype=dtype)
            write_text(folder / "README.md", text)
            remove_notes(folder)
            publish(folder, out)
    except ExportError:
        raise
    except OSError as e:
        raise ExportError(
            f"could not write {out}: {e.strerror or e}. It needs {gigabytes(needed)}; "
            f"{gigabytes(free(out))} are free. Nothing was left behind."
        ) from e
    return out


def _key(recipe: Recipe, items: Sequence[Item], limit: int) -> str:
    """Says what is written: a shard of one key is never taken for one of another."""
    tensors = [[i.name, i.dtype, *i.shape] for i in items]
    parts = [recipe.id, tensors, limit, source_hash(), __version__]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _write_mergekit(path: Path, recipe: Recipe, dtype: str | None) -> str:
    """Writes the recipe for mergekit; returns why that cannot be, else an empty text."""
    try:
        text = to_mergekit(recipe, dtype)
    except ConfigError as e:
        return str(e)
    write_text(path, text)
    return ""


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
        return ModelRef(ref.name, path, found.ref.content or ref.content)

    return dataclasses.replace(
        recipe,
        models=tuple(place(m, e) for m, e in zip(recipe.models, pool.experts, strict=True)),
        base=place(recipe.base, pool.base) if recipe.base and pool.base else recipe.base,
    )


def _items(pool: ExpertPool, dtype: str) -> list[Item]:
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
            items.append(Item(info.name, info.shape, DTYPES.get(wanted, info.dtype), merged=True))
        elif not info.is_float:
            items.append(Item(info.name, info.shape, info.dtype, merged=False))
    return items


def _taken(out: Path, recipe: Recipe, items: Sequence[Item]) -> bool:
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


def _write_config(folder: Path, anchor: Checkpoint, dtype: str) -> None:
    config = dict(anchor.config)
    if dtype != "auto":
        config = _with_dtype(config, dtype)
        config["dtype"] = dtype
        config.pop("torch_dtype", None)  # its older name
    write_text(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")


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


def _common_dtype(items: Sequence[Item]) -> str | None:
    names = {v: k for k, v in DTYPES.items()}
    found = {names[i.dtype] for i in items if i.merged}
    return found.pop() if len(found) == 1 else None


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)  # the content: the hub's cache holds links
    sync(target)
