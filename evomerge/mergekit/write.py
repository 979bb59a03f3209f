"""A recipe -> a mergekit configuration that means the same.

What mergekit's methods are called is in :mod:`evomerge.mergekit.table`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from evomerge.adapter import is_adapter
from evomerge.errors import ConfigError
from evomerge.experts import MergeTensor
from evomerge.mergekit.config import model_source, read_slices
from evomerge.mergekit.plan import Plan
from evomerge.mergekit.runs import runs_of_layers
from evomerge.mergekit.table import METHODS, Row
from evomerge.methods import method
from evomerge.recipe import Recipe, Scalar
from evomerge.roles import layer_of, role_of

Values = dict[str, tuple[float, ...]]
"""Parameter name to its K values (or 1), of one tensor."""


def to_mergekit(recipe: Recipe, dtype: str | None = None) -> str:
    """Writes a recipe for ``mergekit-yaml``.

    Args:
        recipe: A recipe of one of :data:`~evomerge.mergekit.table.METHODS`.
        dtype: dtype of the checkpoint to write; None for that of the models. mergekit is told to
            compute in float32, as evomerge does.

    Returns:
        YAML text, one slice per run of layers with equal coefficients. What mergekit computes
        slightly differently is said in comments.

    Raises:
        ConfigError: mergekit cannot express the recipe; says why.
    """
    if recipe.method not in METHODS:
        raise ConfigError(
            f"mergekit computes {recipe.method!r} differently or not at all; only "
            f"{', '.join(METHODS)} are written for it."
        )
    if recipe.fixed.get("rounding") == "dither" and dtype != "float32":
        raise ConfigError(
            "mergekit rounds to nearest, this recipe is rounded with a dither (fixed.rounding)."
        )
    row = METHODS[recipe.method]
    fixed: dict[str, Scalar] = {**method(recipe.method).fixed, **recipe.fixed}
    _check_expressible(recipe, row, fixed)
    values = _theirs(recipe, row)
    experts = [m.path for m in recipe.models]
    origin = _origin(recipe, row, fixed)
    data: dict[str, Any] = {"merge_method": recipe.method}
    if row.base == "first":
        data["base_model"] = _reference(experts[0])
    elif origin:
        data["base_model"] = _reference(origin)
    if recipe.tokenizer:
        everyone = [*recipe.models, *([recipe.base] if recipe.base else [])]
        path = next(m.path for m in everyone if m.name == recipe.tokenizer)
        data["tokenizer_source"] = _reference(path)
    settings = {p: _spelled(row, p, fixed[p]) for p in row.parameters if p in fixed}
    if settings:
        data["parameters"] = settings
    data["dtype"] = "float32"
    if dtype not in {None, "auto", "float32"}:
        data["out_dtype"] = dtype
    data["slices"] = _slices(recipe, row, values, origin)
    _check_spread(recipe.method, values)
    _check_written(data, values, experts, row)
    comments = [f"evomerge recipe {recipe.id}", "mergekit-yaml THIS_FILE OUT"]
    comments += [f"Not the same: {row.differs}"] if row.differs else []
    comments += [
        f"mergekit has {k} {v}, the recipe {fixed[k]}: it matters for tiny or equal changes."
        for k, v in row.minor.items()
        if fixed.get(k, v) != v
    ]
    return "".join(f"# {c}\n" for c in comments) + yaml.safe_dump(
        data, sort_keys=False, width=99, allow_unicode=True
    )


def _check_expressible(recipe: Recipe, row: Row, fixed: Mapping[str, Scalar]) -> None:
    """Raises ConfigError where the recipe uses what mergekit's method lacks."""
    for model in recipe.models:
        if is_adapter(Path(model.path).expanduser()):
            raise ConfigError(
                f"{model.name!r} is a LoRA adapter: merge it into its base first (peft's "
                "merge_and_unload) and name the result."
            )
    for name, value in row.only.items():
        if (recipe.coefficients[name] != value).any():
            raise ConfigError(
                f"mergekit's {recipe.method!r} has no {name!r}: it computes with {value:g} "
                "throughout, the recipe does not."
            )
    for name in row.equal:
        matrix = recipe.coefficients[name]
        if (matrix != matrix[:, :1]).any():
            raise ConfigError(
                f"mergekit's {recipe.method!r} has no {name!r}: all experts count alike, in the "
                "recipe they do not."
            )
    for name, constant in row.constants.items():
        if fixed.get(name, constant) != constant:
            raise ConfigError(
                f"mergekit's {recipe.method!r} has no setting {name!r}: it is {constant!r} there, "
                f"{fixed[name]!r} in the recipe."
            )


def _theirs(recipe: Recipe, row: Row) -> dict[str, Values]:
    """The parameters of every tensor as mergekit has them."""
    k = len(recipe.models)
    found: dict[str, Values] = {}
    for g, group in enumerate(recipe.groups):
        here: Values = {}
        for name in row.parameters:
            if name in recipe.coefficients:
                given = recipe.coefficients[name][g].tolist()
                here[name] = tuple(
                    given * k if name in row.per_model and len(given) < k else given
                )
        found |= dict.fromkeys(group.tensors, here)
    return found


def _origin(recipe: Recipe, row: Row, fixed: Mapping[str, Scalar]) -> str | None:
    """The base, where mergekit is told of it."""
    on_task_vectors = row.base == "origin" or bool(fixed.get("task_vectors"))
    # In a linear average a base of weight 0 is there for its configuration and tokenizer.
    if recipe.base and (on_task_vectors or recipe.method == "linear"):
        return recipe.base.path
    return None


def _slices(
    recipe: Recipe, row: Row, values: Mapping[str, Values], origin: str | None
) -> list[dict[str, Any]]:
    """One slice per run of layers; what lies outside of them goes with the first or the last."""
    runs = runs_of_layers(values)
    outside = {t: v for t, v in values.items() if layer_of(t) is None}
    found = []
    for i, (first, stop, names) in enumerate(runs):
        keys = {n: (f".{n.split(f'.{first}.', 1)[1]}", values[n]) for n in names}
        for name, v in outside.items():
            if i == (0 if role_of(name) == "embedding" else len(runs) - 1):
                keys[name] = (name, v)
        found.append(_slice(recipe, row, keys, (first, stop), origin))
    return found


def _slice(
    recipe: Recipe,
    row: Row,
    keys: Mapping[str, tuple[str, Values]],
    layers: tuple[int, int],
    origin: str | None,
) -> dict[str, Any]:
    """One slice: sources with their own parameters, and those that they share."""

    def settings(names: Mapping[str, Any], k: int) -> dict[str, Any]:
        return {
            p: _setting({n: (key, v[p][k]) for n, (key, v) in keys.items()})
            for p in names
            if p in recipe.coefficients
        }

    pairs = [(m.path, settings(row.per_model, k)) for k, m in enumerate(recipe.models)]
    if origin:
        pairs.insert(0, (origin, {"weight": 0.0} if recipe.method == "linear" else {}))
    sources = [
        {"model": _reference(path), "layer_range": [*layers]}
        | ({"parameters": given} if given else {})
        for path, given in pairs
    ]
    shared = settings(row.shared, 0)
    return {"sources": sources} | ({"parameters": shared} if shared else {})


def _spelled(row: Row, name: str, value: Scalar) -> Scalar:
    if isinstance(value, bool):
        return value
    return row.words.get(name, {}).get(value, value)


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


def _check_spread(name: str, values: Mapping[str, Values]) -> None:
    """Raises ConfigError where mergekit would refuse DELLA's spread about the density."""
    for tensor, v in values.items():
        for density, epsilon in zip(v.get("density", ()), v.get("epsilon", ()), strict=False):
            if 0 < density < 1 and not epsilon < density < 1 - epsilon:
                raise ConfigError(
                    f"mergekit's {name!r} takes densities between epsilon and 1 - epsilon, 0 or "
                    f"1 only; {tensor!r} has {density:g} with epsilon {epsilon:g}."
                )


def _check_written(
    data: Mapping[str, Any], values: Mapping[str, Values], experts: Sequence[str], row: Row
) -> None:
    """Reads the configuration back as mergekit would; a guard against surprising names."""
    slices, _ = read_slices(data)
    base = model_source(data["base_model"]) if data.get("base_model") else None
    plan = Plan(data["merge_method"], base, slices, data.get("parameters", {}))
    for name, wanted in values.items():
        tensor = MergeTensor(name, (), layer_of(name), role_of(name))
        found = plan.values(tensor, experts, row)
        if any(found[p] != v for p, v in wanted.items()):
            raise ConfigError(
                f"mergekit's filters cannot tell {name!r} from the other tensors by its name."
            )
