"""What a mergekit configuration says: its slices, and the value of a parameter at a tensor.

Learned from mergekit 0.1.5 (github.com/arcee-ai/mergekit; no code is taken from it):

* a parameter is looked up in the model's own ``parameters``, then the slice's, then the global
  ones; a level whose filters all miss is passed over;
* a list of ``{filter, value}`` gives the first value whose filter is a substring of the tensor's
  name; no filter matches everything; a list of numbers is interpolated over the layers of its
  slice (a slice of one layer takes the last);
* embeddings take the values of the first slice, final norm and head those of the last, both at
  the start of a gradient.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import ConfigError, unknown_name
from evomerge.experts import MergeTensor
from evomerge.mergekit.table import ABSENT_IS_ZERO, Row

_KEYS = (
    "models", "slices", "merge_method", "base_model", "parameters", "dtype", "out_dtype",
    "tokenizer_source", "tokenizer", "chat_template", "name",
)  # fmt: skip
_REFUSED = {
    "merges": "a multi-stage merge (merges:)",
    "modules": "a merge of a model with several modules (modules:)",
    "genome": "a mergekit-evolve configuration; turn it into a search with `evomerge import`",
}


@dataclasses.dataclass(frozen=True)
class Source:
    """A model that takes part in a slice, with its own parameters."""

    model: str
    parameters: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Slice:
    """Layers first to stop - 1 and the models they come from."""

    first: int
    stop: int
    sources: tuple[Source, ...]
    parameters: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Plan:
    """A configuration with its slices spelled out."""

    method: str
    base: str | None
    slices: tuple[Slice, ...]
    parameters: Mapping[str, Any]

    def value(
        self, name: str, tensor: str, t: float, part: Slice, source: Source | None = None
    ) -> float | None:
        """One parameter for one tensor; None where nothing sets it."""
        levels = (source.parameters if source else {}, part.parameters, self.parameters)
        for level in levels:
            if name in level:
                value = _evaluate(name, level[name], tensor, t)
                if value is not None:
                    return value
        return None

    def place(self, tensor: MergeTensor) -> tuple[Slice, float, tuple[Source, ...]]:
        """The slice that a tensor takes its values from, and where in its gradients."""
        first, last = self.slices[0], self.slices[-1]
        if tensor.layer is None:
            part = first if tensor.role == "embedding" else last
            return part, 0.0, part.sources[: len(first.sources)]
        part = next(s for s in self.slices if s.first <= tensor.layer < s.stop)
        n = part.stop - part.first
        return part, (tensor.layer - part.first) / (n - 1) if n > 1 else 1.0, part.sources

    def values(
        self, tensor: MergeTensor, models: Sequence[str], row: Row
    ) -> dict[str, tuple[float, ...]]:
        """Every parameter at a tensor: one value per model, or a single one.

        Args:
            tensor: The tensor.
            models: K sources in column order.
            row: What the merge method takes.

        Raises:
            ConfigError: A parameter that must be given and is not, or a slice without one of the
                models where the method cannot do without.
        """
        part, t, sources = self.place(tensor)
        by_model = {s.model: s for s in sources}
        absent = [m for m in models if m not in by_model]
        if absent and self.method not in ABSENT_IS_ZERO:
            raise ConfigError(
                f"mergekit configuration: a slice merges without {absent[0]!r}, which "
                f"{self.method!r} cannot do here; name all models in every slice."
            )

        def get(name: str, source: Source | None = None) -> float:
            value = self.value(name, tensor.name, t, part, source)
            value = row.parameters[name] if value is None else value
            if value is None:
                raise ConfigError(
                    f"mergekit configuration: no {name}{_of(source)} at {tensor.name!r}; set "
                    f"parameters.{name}, or a filter that matches."
                )
            return float(value)

        def of_model(name: str, model: str) -> float:
            if model in by_model:
                return get(name, by_model[model])
            return 0.0 if name == "weight" else float(row.parameters[name] or 0.0)

        found = {p: tuple(of_model(p, m) for m in models) for p in row.per_model}
        return found | {p: (get(p),) for p in row.shared}


def _of(source: Source | None) -> str:
    return f" for {source.model!r}" if source else ""


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


def check_tokenizer(data: Mapping[str, Any], base: str | None, notes: list[str]) -> None:
    """Refuses what would build another vocabulary; ours is always the base model's.

    Raises:
        ConfigError: ``tokenizer_source: union``, a model's that is not the base, added tokens ...
    """
    source = data.get("tokenizer_source")
    settings = as_mapping(data.get("tokenizer"), "tokenizer")
    for key, value in settings.items():
        if key == "source":
            source = value
        elif value:
            raise ConfigError(
                f"mergekit configuration: tokenizer.{key} changes the vocabulary, which evomerge "
                "does not; all models must share one vocabulary."
            )
    if source not in [None, "base"] and (source == "union" or model_source(source) != base):
        raise ConfigError(
            f"mergekit configuration: tokenizer_source {source!r} is not supported; all models "
            "must share one vocabulary, and the merge takes the base model's tokenizer."
        )
    if data.get("chat_template"):
        notes.append("chat_template is not applied; the merge keeps the base model's.")


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


def _evaluate(name: str, setting: Any, tensor: str, t: float) -> float | None:
    """A number, a gradient, or a list of filters, at one tensor."""
    value = _number(setting)
    if value is not None:
        return value
    if isinstance(setting, Mapping):
        setting = [setting]
    if isinstance(setting, list) and setting:
        values = [_number(v) for v in setting]
        numbers = [v for v in values if v is not None]
        if len(numbers) == len(setting):
            at = t * (len(numbers) - 1)
            left = int(at)
            right = min(left + 1, len(numbers) - 1)
            return (1 - (at - left)) * numbers[left] + (at - left) * numbers[right]
        if all(isinstance(v, Mapping) and "value" in v for v in setting):
            for v in setting:
                wanted = v.get("filter")
                if wanted is None or wanted == "*" or str(wanted) in tensor:
                    return _evaluate(name, v["value"], tensor, t)
            return None
    raise ConfigError(
        f"mergekit configuration: parameter {name!r} must be a number, a list of numbers or a "
        f"list of {{filter, value}}, got {setting!r}."
    )


def _number(value: Any) -> float | None:
    """A number, also one that YAML takes for text (``1e-5``); None for anything else."""
    if isinstance(value, (bool, int, float)):
        return float(value)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return None
