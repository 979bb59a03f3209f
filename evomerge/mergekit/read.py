"""A single-stage mergekit configuration -> a recipe.

What a parameter means at a tensor is in :mod:`evomerge.mergekit.plan`, what the methods are called
in :mod:`evomerge.mergekit.table`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.errors import ConfigError, unknown_name
from evomerge.experts import ExpertPool, MergeTensor
from evomerge.mergekit.config import (
    as_mapping,
    load_config,
    model_source,
    name_models,
    read_slices,
    tokenizer_of,
)
from evomerge.mergekit.plan import Plan, Source
from evomerge.mergekit.runs import runs_of_layers
from evomerge.mergekit.table import FOLDED, METHODS, Row
from evomerge.methods import check_settings, method
from evomerge.recipe import LayerGroup, Matrix, Recipe, Scalar

DTYPES = ("float32", "bfloat16", "float16")

Values = dict[str, tuple[float, ...]]
"""Parameter name to its K values (or 1), of one tensor."""


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


def from_mergekit(text: str) -> Imported:
    """Reads a single-stage mergekit configuration.

    Args:
        text: YAML: ``models:``, or ``slices:`` that take every layer once and in order; one of
            the methods of :data:`~evomerge.mergekit.table.METHODS`.

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
    row = METHODS[name]
    base = model_source(data["base_model"]) if data.get("base_model") else None
    plan, open_end = _plan(name, base, data)
    _note_ignored(plan, row, notes)
    pool_base, experts = _roles(plan, row, notes)
    settings = _as_mergekit(name, row, task_vectors=pool_base is not None)
    check_settings(name, settings, has_base=pool_base is not None, n_experts=len(experts))
    named = name_models(experts)
    everyone = {**({"base": pool_base} if pool_base else {}), **named}
    tokenizer = tokenizer_of(data, base, everyone, notes)
    pool = ExpertPool.open(pool_base, named, tokenizer=tokenizer)
    plan = _cover(plan, pool.n_layers, open_end=open_end)
    given = {t.name: plan.values(t, experts, row) for t in pool.tensors}
    values, fixed = _ours(name, row, given, len(experts))
    groups, coefficients = _groups(pool.tensors, values)
    usual = method(name).fixed
    recipe = Recipe(
        method=name,
        models=pool.refs,
        base=pool.base.ref if pool.base else None,
        groups=groups,
        coefficients=coefficients,
        fixed={
            k: v
            for k, v in {**settings, **fixed}.items()
            if v != usual[k] or k in row.parameters or k == "task_vectors"
        },
        tokenizer=pool.spelling,
    )
    if row.differs:
        notes.append(row.differs)
    return Imported(recipe, _dtype(data, notes), tuple(notes))


def _plan(name: str, base: str | None, data: Mapping[str, Any]) -> tuple[Plan, bool]:
    """The slices with the base among their models, and whether the last reaches to the end."""
    slices, open_end = read_slices(data)
    parameters = as_mapping(data.get("parameters"), "parameters")
    used = {s.model for part in slices for s in part.sources}
    if open_end and base and base not in used and (name != "linear" or "weight" in parameters):
        # mergekit adds the base to the list of models; in an average, a global weight is its too.
        slices = (dataclasses.replace(slices[0], sources=(*slices[0].sources, Source(base, {}))),)
    return Plan(name, base, slices, parameters), open_end


def _as_mergekit(name: str, row: Row, *, task_vectors: bool) -> dict[str, Scalar]:
    """Our settings that mergekit has no name for, as it computes."""
    settings: dict[str, Scalar] = {**row.constants, **row.minor}
    if row.base == "optional":
        settings["task_vectors"] = task_vectors
    return {k: v for k, v in settings.items() if k in method(name).fixed}


def _roles(plan: Plan, row: Row, notes: list[str]) -> tuple[str | None, list[str]]:
    """The base and the experts, in column order."""
    used = list(dict.fromkeys(s.model for part in plan.slices for s in part.sources))
    others = [m for m in used if m != plan.base]
    if row.base in {"origin", "first"} and plan.base is None:
        raise ConfigError(f"mergekit configuration: {plan.method} needs base_model.")
    if row.base == "origin" or (row.base == "optional" and plan.base):
        if not others:
            raise ConfigError("mergekit configuration: no model beside base_model.")
        return plan.base, others
    if plan.base is None:
        return None, others
    if plan.base not in used:
        if row.base == "first":
            raise ConfigError(
                f"mergekit configuration: base_model {plan.base!r} is none of the two models that "
                f"{plan.method} merges; it must be the one at t = 0."
            )
        notes.append("base_model is no part of the average; it gives configuration and tokenizer.")
        return plan.base, others
    sources = [s for part in plan.slices for s in part.sources if s.model == plan.base]
    if (
        plan.method == "linear"
        and others
        and all(s.parameters.get("weight") == 0 for s in sources)
    ):
        return plan.base, others
    # Merged like any other model; first, since the first gives the configuration.
    return None, [plan.base, *others]


def _ours(
    name: str, row: Row, given: Mapping[str, Values], n_experts: int
) -> tuple[dict[str, Values], dict[str, Scalar]]:
    """Translates values: coefficients of every tensor, and settings of all."""
    chosen = method(name)
    values: dict[str, Values] = {t: {} for t in given}
    fixed: dict[str, Scalar] = {}
    if name == "linear":
        given = _normalised_alike(given)
    for p in chosen.parameters:
        shared = chosen.parameters[p].shared
        for t, theirs in given.items():
            found = theirs.get(p, (row.only.get(p, 1.0),))
            if shared and len(set(found)) > 1:
                raise ConfigError(
                    f"mergekit configuration: {p} differs between the models at {t!r}; "
                    f"{name!r} has one for all of them here."
                )
            values[t][p] = found[:1] if shared else found * (n_experts if len(found) == 1 else 1)
    for p in row.parameters:
        if p in chosen.fixed:
            all_of = {v for theirs in given.values() for v in theirs[p]}
            if len(all_of) > 1:
                raise ConfigError(
                    f"mergekit configuration: {p} differs between tensors or models "
                    f"({sorted(all_of)}); evomerge has one setting for a merge."
                )
            fixed[p] = _typed(all_of.pop(), row.parameters[p])
        elif p not in chosen.parameters and p not in FOLDED:
            raise ConfigError(f"mergekit configuration: {name!r} has no {p} here.")
    folded = [p for p in FOLDED if p in row.parameters and p not in {**chosen.parameters, **fixed}]
    for t, theirs in given.items() if folded else ():
        values[t]["weight"] = _scaled(theirs)
    return values, fixed


def _normalised_alike(given: Mapping[str, Values]) -> Mapping[str, Values]:
    """Weights that are normalised for some tensors only, normalised here."""
    if len({v["normalize"] for v in given.values()}) == 1:
        return given
    return {
        t: {"weight": _normalised(t, v["weight"]) if v["normalize"][0] else v["weight"],
            "normalize": (0.0,)}
        for t, v in given.items()
    }  # fmt: skip


def _scaled(values: Values) -> tuple[float, ...]:
    """Weights with ``normalize`` and ``lambda`` multiplied in."""
    row, total = values["weight"], sum(values["weight"])
    if values["normalize"][0] and abs(total) >= 1e-8:
        row = tuple(w / total for w in row)
    scale = values["lambda"][0]
    return row if scale == 1 else tuple(w * scale for w in row)


def _typed(value: float, like: Scalar | None) -> Scalar:
    if isinstance(like, bool):
        return bool(value)
    return int(value) if isinstance(like, int) else value


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


def _note_ignored(plan: Plan, row: Row, notes: list[str]) -> None:
    levels = [plan.parameters]
    for part in plan.slices:
        levels += [part.parameters, *(s.parameters for s in part.sources)]
    odd = sorted({str(k) for level in levels for k in level} - set(row.parameters))
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


def _normalised(tensor: str, row: tuple[float, ...]) -> tuple[float, ...]:
    total = sum(row)
    if abs(total) < 1e-6:
        raise ConfigError(f"mergekit configuration: the weights of {tensor!r} sum to {total:g}.")
    return tuple(w / total for w in row)


def _groups(
    tensors: Sequence[MergeTensor], values: Mapping[str, Values]
) -> tuple[tuple[LayerGroup, ...], dict[str, Matrix]]:
    """Tensors with equal coefficients together: per run of like layers, and outside of them."""
    members: dict[tuple[str, tuple[Any, ...]], list[MergeTensor]] = {}
    label = {
        layer: f"layers.{first}" if stop == first + 1 else f"layers.{first}-{stop - 1}"
        for first, stop, _ in runs_of_layers(values)
        for layer in range(first, stop)
    }
    for tensor in tensors:
        place = "outside" if tensor.layer is None else label[tensor.layer]
        members.setdefault((place, tuple(values[tensor.name].items())), []).append(tensor)
    places = Counter(place for place, _ in members)
    groups: list[LayerGroup] = []
    for (place, _), found in members.items():
        roles = "+".join(dict.fromkeys(t.role for t in found))
        name = place if places[place] == 1 else f"{place}.{roles}"
        taken = sum(g.name == name or g.name.startswith(f"{name}#") for g in groups)
        name = f"{name}#{taken + 1}" if taken else name
        groups.append(LayerGroup(name, tuple(t.name for t in found)))
    first = values[groups[0].tensors[0]]
    return tuple(groups), {
        p: np.array([values[g.tensors[0]][p] for g in groups], dtype=np.float64) for p in first
    }
