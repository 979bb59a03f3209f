"""The value of a mergekit parameter at a tensor.

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
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.errors import ConfigError
from evomerge.experts import MergeTensor
from evomerge.mergekit.table import ABSENT_IS_ZERO, Row


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
