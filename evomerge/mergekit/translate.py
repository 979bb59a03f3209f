"""mergekit's YAML, both ways, for the merges that mean the same in both programs.

* :func:`to_mergekit`: a recipe as a configuration for ``mergekit-yaml``.
* :func:`from_mergekit`: a single-stage configuration as a recipe.

What a configuration means is in :mod:`evomerge.mergekit.config`.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from evomerge.errors import ConfigError, unknown_name
from evomerge.experts import ExpertPool, MergeTensor, layer_of, role_of
from evomerge.mergekit.config import (
    Plan,
    Row,
    Source,
    as_mapping,
    check_tokenizer,
    load_config,
    model_source,
    name_models,
    read_slices,
)
from evomerge.recipe import LayerGroup, Recipe, Scalar

METHODS = ("linear", "task_arithmetic")
"""The merge methods that both programs compute alike."""
DTYPES = ("float32", "bfloat16", "float16")

_SETTINGS = {
    "linear": {"weight", "normalize"},
    "task_arithmetic": {"weight", "normalize", "lambda"},
}


@dataclasses.dataclass(frozen=True)
class Imported:
    """What a mergekit configuration asks for.

    Attributes:
        recipe: The merge.
        dtype: dtype of the checkpoint to write; ``"auto"`` where the configuration names none.
        notes: What differs or was left out, one sentence each.
    """

    recipe: Recipe
    dtype: str
    notes: tuple[str, ...]


def from_mergekit(
    text: str,
    open_pool: Callable[[str | None, Mapping[str, str]], ExpertPool] = ExpertPool.open,
) -> Imported:
    """Reads a single-stage mergekit configuration.

    Args:
        text: YAML: ``models:``, or ``slices:`` that take every layer once and in order; method
            ``linear`` or ``task_arithmetic``.
        open_pool: Opens the models, called with the base (or None) and expert name to source.

    Returns:
        The recipe, the dtype to export in, and notes.

    Raises:
        ConfigError: Not such a configuration, or one that uses what evomerge has not.
        UnknownNameError: Another merge method.
        CheckpointError: The models cannot be opened or do not fit each other.
    """
    data = load_config(text)
    notes: list[str] = []
    name = str(data.get("merge_method"))
    if name not in METHODS:
        raise unknown_name("merge method of a mergekit configuration", name, METHODS)
    base = model_source(data["base_model"]) if data.get("base_model") else None
    check_tokenizer(data, base, notes)
    slices, open_end = read_slices(data)
    parameters = as_mapping(data.get("parameters"), "parameters")
    used = list(dict.fromkeys(s.model for part in slices for s in part.sources))
    if open_end and base and base not in used and "weight" in parameters:
        # mergekit adds the base to the list of models, so a global weight is the base's too.
        slices = (dataclasses.replace(slices[0], sources=(*slices[0].sources, Source(base, {}))),)
        used.append(base)
    plan = Plan(name, base, slices, parameters)
    _note_ignored(plan, notes)
    pool_base, experts = _roles(plan, used, notes)
    pool = open_pool(pool_base, name_models(experts))
    plan = _cover(plan, pool.n_layers, open_end=open_end)
    rows = {t.name: plan.row(t, experts) for t in pool.tensors}
    fixed: dict[str, Scalar] = {}
    if name == "linear":
        fixed["normalize"] = all(normal for _, normal in rows.values())
        if not fixed["normalize"] and any(normal for _, normal in rows.values()):
            rows = {
                t: (_normalised(t, r) if normal else r, False) for t, (r, normal) in rows.items()
            }
    groups, matrix = _groups(pool.tensors, {t: r for t, (r, _) in rows.items()})
    recipe = Recipe(
        method=name,
        models=pool.refs,
        base=pool.base.ref if pool.base else None,
        groups=groups,
        coefficients={"weight": matrix},
        fixed=fixed,
    )
    return Imported(recipe, _dtype(data, notes), tuple(notes))


def to_mergekit(recipe: Recipe, dtype: str | None = None) -> str:
    """Writes a recipe for ``mergekit-yaml``.

    Args:
        recipe: A recipe of one of :data:`METHODS`.
        dtype: dtype of the checkpoint to write; None for that of the models. mergekit is told to
            compute in float32, as evomerge does.

    Returns:
        YAML text, one slice per run of layers with equal coefficients.

    Raises:
        ConfigError: mergekit cannot express the recipe; says why.
    """
    if recipe.method not in METHODS:
        raise ConfigError(
            f"mergekit computes {recipe.method!r} differently or not at all; only "
            f"{' and '.join(METHODS)} are written for it."
        )
    if recipe.fixed.get("rounding") == "dither" and dtype != "float32":
        raise ConfigError(
            "mergekit rounds to nearest, this recipe is rounded with a dither (fixed.rounding)."
        )
    weights = recipe.coefficients["weight"]
    rows: dict[str, Row] = {
        t: tuple(weights[g].tolist())
        for g, group in enumerate(recipe.groups)
        for t in group.tensors
    }
    runs = _runs(rows)
    outside = {t: r for t, r in rows.items() if layer_of(t) is None}
    slices = []
    for i, (first, stop, names) in enumerate(runs):
        keys = {name: (f".{name.split(f'.{first}.', 1)[1]}", rows[name]) for name in names}
        for name, row in outside.items():
            if i == (0 if role_of(name) == "embedding" else len(runs) - 1):
                keys[name] = (name, row)
        settings: list[tuple[str, Any]] = [
            (m.path, _setting({n: (key, row[k]) for n, (key, row) in keys.items()}))
            for k, m in enumerate(recipe.models)
        ]
        if recipe.base:  # in an average it is there for its configuration and tokenizer only
            settings.insert(0, (recipe.base.path, 0.0 if recipe.method == "linear" else None))
        sources = [
            {"model": _reference(path), "layer_range": [first, stop]}
            | ({} if setting is None else {"parameters": {"weight": setting}})
            for path, setting in settings
        ]
        slices.append({"sources": sources})
    data: dict[str, Any] = {"merge_method": recipe.method}
    if recipe.base:
        data["base_model"] = _reference(recipe.base.path)
    if recipe.method == "linear":
        data["parameters"] = {"normalize": bool(recipe.fixed.get("normalize", True))}
    data["dtype"] = "float32"
    if dtype not in {None, "auto", "float32"}:
        data["out_dtype"] = dtype
    data["slices"] = slices
    _check_written(data, rows, [m.path for m in recipe.models])
    return f"# evomerge recipe {recipe.id}\n# mergekit-yaml THIS_FILE OUT\n" + yaml.safe_dump(
        data, sort_keys=False, width=99, allow_unicode=True
    )


def _roles(plan: Plan, used: Sequence[str], notes: list[str]) -> tuple[str | None, list[str]]:
    """The base and the experts, in column order."""
    if plan.method == "task_arithmetic":
        if plan.base is None:
            raise ConfigError("mergekit configuration: task_arithmetic needs base_model.")
        experts = [m for m in used if m != plan.base]
        if not experts:
            raise ConfigError("mergekit configuration: no model beside base_model.")
        return plan.base, experts
    sources = [s for part in plan.slices for s in part.sources if s.model == plan.base]
    if plan.base not in used:
        if plan.base:
            notes.append(
                "base_model is no part of the average; it gives configuration and tokenizer."
            )
        return plan.base, list(used)
    if len(used) > 1 and all(s.parameters.get("weight") == 0 for s in sources):
        return plan.base, [m for m in used if m != plan.base]
    assert plan.base is not None  # noqa: S101 - it is in used
    # The base is averaged like any other model; first, since the first gives the configuration.
    return None, [plan.base, *(m for m in used if m != plan.base)]


def _cover(plan: Plan, n_layers: int, *, open_end: bool) -> Plan:
    if open_end:
        whole = dataclasses.replace(plan.slices[0], stop=n_layers)
        return dataclasses.replace(plan, slices=(whole,))
    if plan.slices[-1].stop != n_layers:
        raise ConfigError(
            f"mergekit configuration: the slices take layers 0 to {plan.slices[-1].stop - 1}, the "
            f"models have {n_layers}. Leaving layers out or stacking them is not supported."
        )
    return plan


def _note_ignored(plan: Plan, notes: list[str]) -> None:
    levels = [plan.parameters]
    for part in plan.slices:
        levels += [part.parameters, *(s.parameters for s in part.sources)]
    odd = sorted({str(k) for level in levels for k in level} - _SETTINGS[plan.method])
    notes += [f"parameter {k!r} has no effect on {plan.method!r} and is left out." for k in odd]


def _dtype(data: Mapping[str, Any], notes: list[str]) -> str:
    chosen = data.get("out_dtype") or data.get("dtype")
    if chosen is None:
        return "auto"
    name = str(chosen).removeprefix("torch.")
    if name not in DTYPES:
        raise unknown_name("dtype", name, DTYPES)
    if str(data.get("dtype", "float32")).removeprefix("torch.") != "float32":
        notes.append(
            f"mergekit would compute in {data['dtype']}; evomerge accumulates in float32 and "
            "rounds once."
        )
    return name


def _normalised(tensor: str, row: Row) -> Row:
    total = sum(row)
    if abs(total) < 1e-6:
        raise ConfigError(f"mergekit configuration: the weights of {tensor!r} sum to {total:g}.")
    return tuple(w / total for w in row)


def _groups(
    tensors: Sequence[MergeTensor], rows: Mapping[str, Row]
) -> tuple[tuple[LayerGroup, ...], np.ndarray[Any, np.dtype[np.float64]]]:
    """Tensors with equal coefficients together: per run of like layers, and outside of them."""
    members: dict[tuple[str, Row], list[MergeTensor]] = {}
    label = {
        layer: f"layers.{first}" if stop == first + 1 else f"layers.{first}-{stop - 1}"
        for first, stop, _ in _runs(rows)
        for layer in range(first, stop)
    }
    for tensor in tensors:
        place = "outside" if tensor.layer is None else label[tensor.layer]
        members.setdefault((place, rows[tensor.name]), []).append(tensor)
    places = Counter(place for place, _ in members)
    groups: list[LayerGroup] = []
    matrix: list[Row] = []
    for (place, row), found in members.items():
        roles = "+".join(dict.fromkeys(t.role for t in found))
        name = place if places[place] == 1 else f"{place}.{roles}"
        taken = sum(g.name == name or g.name.startswith(f"{name}#") for g in groups)
        name = f"{name}#{taken + 1}" if taken else name
        groups.append(LayerGroup(name, tuple(t.name for t in found)))
        matrix.append(row)
    return tuple(groups), np.array(matrix, dtype=np.float64)


def _runs(rows: Mapping[str, Row]) -> list[tuple[int, int, list[str]]]:
    """Runs of layers with equal coefficients: first, end, and the first layer's tensors.

    Raises:
        ConfigError: Layers that are not numbered 0, 1, ... in one stack.
    """
    layers: dict[int, dict[str, Row]] = {}
    prefixes = set()
    for name, row in rows.items():
        layer = layer_of(name)
        if layer is not None:
            prefix, suffix = name.split(f".{layer}.", 1)
            prefixes.add(prefix)
            layers.setdefault(layer, {})[suffix] = row
    if len(prefixes) != 1 or sorted(layers) != list(range(len(layers))):
        raise ConfigError(
            "mergekit configurations describe one stack of layers numbered from 0; these models "
            f"have {len(prefixes)} stacks: {sorted(prefixes)[:3]}."
        )
    prefix = prefixes.pop()
    runs: list[tuple[int, int, list[str]]] = []
    for layer in sorted(layers):
        if runs and layers[layer] == layers[layer - 1]:
            runs[-1] = (runs[-1][0], layer + 1, runs[-1][2])
        else:
            runs.append((layer, layer + 1, [f"{prefix}.{layer}.{s}" for s in layers[layer]]))
    return runs


def _setting(values: Mapping[str, tuple[str, float]]) -> float | list[dict[str, Any]]:
    """A number, or the shortest list of filters found that gives every tensor its value.

    Args:
        values: Tensor name to a filter that surely matches it, and its value.
    """
    counts = Counter(v for _, v in values.values())
    default = counts.most_common(1)[0][0]
    if len(counts) == 1:
        return default
    entries: list[dict[str, Any]] = []
    rest = {name for name, (_, v) in values.items() if v != default}
    while rest:
        covers: dict[str, set[str]] = {}
        for token in sorted({p for n in rest for p in _tokens(values[n][0])}):
            hit = {n for n in values if token in n}
            if len({values[n][1] for n in hit}) == 1:
                covers[token] = hit & rest
        if not covers:
            break
        token = max(covers, key=lambda k: (len(covers[k]), -len(k)))
        entries.append({"filter": token, "value": values[min(covers[token])][1]})
        rest -= covers[token]
    # What no single word sets apart is named in full, longer names first: a shorter name may be
    # part of a longer one, never the other way round.
    exact = {values[n][0] for n in rest}
    named = [n for n in values if n in rest or any(key in n for key in exact)]
    named.sort(key=lambda n: (-len(values[n][0]), n))
    entries += [{"filter": values[n][0], "value": values[n][1]} for n in named]
    return [*entries, {"value": default}]


def _tokens(key: str) -> Iterator[str]:
    parts = [*key.split("."), *re.split(r"[._]", key)]
    return (p for p in parts if len(p) > 2 and p not in {"weight", "bias"})


def _reference(path: str) -> Any:
    """A path as mergekit reads it: ``@`` and ``+`` have a meaning within plain strings."""
    local = Path(path).expanduser().is_dir()
    if "+" in path or (local and "@" in path):
        return {"model": {"path": path}}
    return path


def _check_written(
    data: Mapping[str, Any], rows: Mapping[str, Row], models: Sequence[str]
) -> None:
    """Reads the configuration back as mergekit would; a guard against surprising names."""
    slices, _ = read_slices(data)
    base = model_source(data["base_model"]) if data.get("base_model") else None
    plan = Plan(data["merge_method"], base, slices, data.get("parameters", {}))
    for name, row in rows.items():
        tensor = MergeTensor(name, (), layer_of(name), role_of(name))
        if plan.row(tensor, models)[0] != row:
            raise ConfigError(
                f"mergekit's filters cannot tell {name!r} from the other tensors by its name."
            )
