"""Reading a mergekit configuration: its keys, models, slices and tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import ConfigError, unknown_name
from evomerge.mergekit.plan import Slice, Source

_KEYS = (
    "models", "slices", "merge_method", "base_model", "parameters", "dtype", "out_dtype",
    "tokenizer_source", "tokenizer", "chat_template", "name",
)  # fmt: skip
_REFUSED = {
    "merges": "a multi-stage merge (merges:)",
    "modules": "a merge of a model with several modules (modules:)",
    "genome": "a mergekit-evolve configuration; turn it into a search with `evomerge import`",
}


def model_source(value: Any) -> str:
    """A model as mergekit writes it (``path``, ``org/model@revision`` or a mapping) as one string.

    Raises:
        ConfigError: A LoRA (``model+lora``), or not a model at all.
    """
    lora, path = None, value
    if isinstance(value, Mapping):
        lora, path = value.get("lora"), value.get("model")
        if isinstance(path, Mapping):
            revision = path.get("revision")
            path = f"{path.get('path')}@{revision}" if revision else path.get("path")
    elif isinstance(value, str) and "+" in value:
        path, lora = value.split("+", 1)
    if not isinstance(path, str) or not path:
        raise ConfigError(f"mergekit configuration: expected a model's path or id, got {value!r}.")
    if lora:
        raise ConfigError(
            f"mergekit configuration: {value!r} applies a LoRA; merge it into its base model "
            "first (peft's merge_and_unload) and name the result."
        )
    return path


def name_models(sources: Iterable[str]) -> dict[str, str]:
    """Short unique expert names, from the last part of each path, to their sources."""
    named: dict[str, str] = {}
    for source in sources:
        stem = Path(source.split("@", 1)[0]).name or "model"
        name, n = stem, 2
        while name in named or name == "base":
            name, n = f"{stem}_{n}", n + 1
        named[name] = source
    return named


def tokenizer_of(
    data: Mapping[str, Any],
    base: str | None,
    named: Mapping[str, str],
    notes: list[str],
) -> str | None:
    """Name of the model whose tokenizer the merge has; None where the file leaves it open.

    Args:
        data: The configuration.
        base: Its ``base_model``.
        named: Name to source of the models that are merged, ``"base"`` among them.
        notes: Told what is left out.

    Raises:
        ConfigError: ``tokenizer_source: union``, added tokens: what would make a new vocabulary;
            or a model that is not merged.
    """
    source = data.get("tokenizer_source")
    settings = as_mapping(data.get("tokenizer"), "tokenizer")
    for key, value in settings.items():
        if key == "source":
            source = value
        elif value:
            raise ConfigError(
                f"mergekit configuration: tokenizer.{key} changes the vocabulary, which evomerge "
                "does not; name the model whose tokenizer the merge is to have."
            )
    if data.get("chat_template"):
        notes.append("chat_template is not applied; the merge keeps that of its tokenizer.")
    if source is None:
        return None
    wanted = source if source == "union" else model_source(source)
    if wanted == "base":
        wanted = base
    names = {path: name for name, path in named.items()}
    if wanted in names:
        return names[wanted]
    if wanted == base:  # it gives its configuration to an average, and none of its weights
        return None
    raise ConfigError(
        f"mergekit configuration: tokenizer_source {source!r}: expected 'base' or "
        "one of the merged models (of several with added tokens, the one with the most)."
    )


def load_config(text: str) -> dict[str, Any]:
    """Parses a configuration.

    Raises:
        ConfigError: Not one single-stage configuration.
        UnknownNameError: An unknown key.
    """
    try:
        documents = [d for d in yaml.safe_load_all(text) if d is not None]
    except yaml.YAMLError as e:
        raise ConfigError(f"not valid YAML: {e}") from e
    if len(documents) > 1:
        raise ConfigError(
            f"a multi-stage merge ({len(documents)} YAML documents) is not supported; merge "
            "stage by stage."
        )
    data = documents[0] if documents else None
    if not isinstance(data, dict):
        raise ConfigError("the file holds no mapping; expected a mergekit configuration.")
    for key, what in _REFUSED.items():
        if data.get(key):
            raise ConfigError(f"this is {what}; only single-stage merges can be read.")
    for key in data:
        if key not in _KEYS:
            raise unknown_name("key of a mergekit configuration", str(key), _KEYS)
    if bool(data.get("models")) == bool(data.get("slices")):
        raise ConfigError("mergekit configuration: expected either 'models' or 'slices'.")
    return data


def as_mapping(value: Any, where: str) -> Mapping[str, Any]:
    """``value``, ``{}`` for None; raises ConfigError, naming ``where``, for anything else."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"mergekit configuration: {where} must be a mapping, got {value!r}.")
    return value


def _sources(entries: Any, where: str) -> list[tuple[Source, Any]]:
    """Sources with their layer ranges (None where none is given)."""
    found: list[tuple[Source, Any]] = []
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"mergekit configuration: {where} must be a list of models.")
    for raw in entries:
        entry = as_mapping(raw, where)
        model = model_source(entry.get("model"))
        if any(model == s.model for s, _ in found):
            raise ConfigError(f"mergekit configuration: {where} lists {model!r} twice.")
        parameters = as_mapping(entry.get("parameters"), f"parameters of {model!r}")
        found.append((Source(model, parameters), entry.get("layer_range")))
    return found


def read_slices(data: Mapping[str, Any]) -> tuple[tuple[Slice, ...], bool]:
    """The slices, and whether the last one reaches to the end of the model."""
    if data.get("models"):
        sources = tuple(s for s, _ in _sources(data["models"], "models"))
        return (Slice(0, 0, sources, {}),), True
    slices: list[Slice] = []
    at = 0
    if not isinstance(data["slices"], list):
        raise ConfigError("mergekit configuration: slices must be a list.")
    for i, raw in enumerate(data["slices"]):
        part = as_mapping(raw, f"slices[{i}]")
        for key in ("base_model", "residual_weight"):
            if part.get(key) not in [None, data.get("base_model")]:
                raise ConfigError(f"mergekit configuration: slices[{i}].{key} is not supported.")
        pairs = _sources(part.get("sources"), f"slices[{i}].sources")
        ranges = [r for _, r in pairs]
        if any(not (isinstance(r, list) and len(r) == 2) for r in ranges):
            raise ConfigError(
                f"mergekit configuration: slices[{i}]: layer_range must be [first, end), got "
                f"{ranges}."
            )
        first, stop = (int(x) for x in ranges[0])
        if any(r != ranges[0] for r in ranges) or first != at or stop <= first:
            raise ConfigError(
                f"mergekit configuration: slices[{i}] takes layers {ranges}; expected every model "
                f"from layer {at} on. Slices that stack, repeat, skip or reorder layers are not "
                "supported: evomerge merges models layer by layer."
            )
        at = stop
        sources = tuple(s for s, _ in pairs)
        slices.append(
            Slice(
                first, stop, sources, as_mapping(part.get("parameters"), f"slices[{i}].parameters")
            )
        )
    return tuple(slices), False
