"""Recipes: what to merge, and nothing about how it is carried out.

A candidate is a :class:`Recipe`, never a checkpoint. A recipe names a merge method, a base, K
experts, G layer groups that cover every tensor exactly once, and one coefficient matrix per
parameter of the method. It travels as YAML and has a content id that does not depend on where the
checkpoints lie.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from evomerge.errors import ConfigError

Matrix = npt.NDArray[np.float64]
Vector = npt.NDArray[np.float64]
Scalar = bool | int | float | str

FORMAT = 1
"""Version of the YAML form; raised when an old file can no longer be read as it is."""


@dataclasses.dataclass(frozen=True)
class ModelRef:
    """A model by name, by place and by content.

    Attributes:
        name: Short name, unique within a recipe (``"math"``); shown in tables.
        path: Where it lies: a local folder or a hub id. Not part of the recipe's identity.
        content: sha256 of the weights, or ``""`` where it is not known (a hand-written recipe).
    """

    name: str
    path: str
    content: str = ""


@dataclasses.dataclass(frozen=True)
class LayerGroup:
    """Tensors that share their coefficients: one row of every coefficient matrix.

    Attributes:
        name: For example ``"layers.0-1.mlp"``.
        tensors: Names of the tensors, in the model's order.
    """

    name: str
    tensors: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """What to merge.

    Attributes:
        method: A key of :data:`evomerge.methods.METHODS`.
        models: The K experts; their order is the column order of every matrix.
        base: The model that the experts were fine-tuned from, or None.
        groups: G groups that cover every tensor exactly once.
        coefficients: Parameter name to a float64 matrix of shape (G, K), or (G, 1) for a
            parameter that all experts share.
        fixed: What is not searched: seeds, ranks, switches.
        tokenizer: The model whose tokenizer and vocabulary the merge has, by name (``"base"`` or
            an expert's); the others' embeddings are matched with it by token. Empty: all have the
            same.
    """

    method: str
    models: tuple[ModelRef, ...]
    base: ModelRef | None
    groups: tuple[LayerGroup, ...]
    coefficients: Mapping[str, Matrix]
    fixed: Mapping[str, Scalar] = dataclasses.field(default_factory=dict)
    tokenizer: str = ""

    def __post_init__(self) -> None:
        """Checks shapes and names.

        Raises:
            ConfigError: A matrix of the wrong shape, a non-finite coefficient, a tensor in two
                groups, two models with one name, or no experts or groups at all.
        """
        if not self.models or not self.groups:
            raise ConfigError("a recipe needs at least one expert and one layer group.")
        names = [m.name for m in self.models]
        if len(set(names)) != len(names):
            raise ConfigError(f"expert names must differ, got {names}.")
        known = [*names, *([self.base.name] if self.base else [])]
        if self.tokenizer and self.tokenizer not in known:
            raise ConfigError(f"tokenizer {self.tokenizer!r}: expected one of {known}, or none.")
        seen: dict[str, str] = {}
        for group in self.groups:
            for tensor in group.tensors:
                if tensor in seen:
                    raise ConfigError(
                        f"tensor {tensor!r} is in two layer groups, {seen[tensor]!r} and "
                        f"{group.name!r}; every tensor belongs to exactly one."
                    )
                seen[tensor] = group.name
        g, k = len(self.groups), len(self.models)
        frozen = {}
        for key, value in self.coefficients.items():
            matrix = np.array(value, dtype=np.float64)
            if matrix.shape not in {(g, k), (g, 1)}:
                raise ConfigError(
                    f"coefficients[{key!r}]: expected shape (groups, experts) = ({g}, {k}) or "
                    f"({g}, 1), got {matrix.shape}."
                )
            if not np.isfinite(matrix).all():
                raise ConfigError(f"coefficients[{key!r}] has NaN or infinite entries.")
            matrix.flags.writeable = False
            frozen[key] = matrix
        object.__setattr__(self, "coefficients", frozen)

    @functools.cached_property
    def id(self) -> str:
        """Sha256 (hex, 64 characters) of the canonical form.

        Models enter by content where it is known, so the id is the same on every machine.
        """
        base, groups, models = _canonical_layout(self.base, self.groups, self.models)
        coefficients = _canonical({k: v.tolist() for k, v in self.coefficients.items()})
        tokenizer = f',"tokenizer":{_canonical(self.tokenizer)}' if self.tokenizer else ""
        text = (
            f'{{"base":{base},"coefficients":{coefficients},"fixed":{_canonical(dict(self.fixed))},'
            f'"format":{FORMAT},"groups":{groups},"method":{_canonical(self.method)},'
            f'"models":{models}{tokenizer}}}'
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def with_groups(self, groups: tuple[LayerGroup, ...]) -> Recipe:
        """The same merge, written in other layer groups.

        Args:
            groups: Must cover the same tensors.

        Raises:
            ConfigError: Other tensors, or a group whose tensors have different coefficients here.
        """
        row_of = {t: g for g, group in enumerate(self.groups) for t in group.tensors}
        if row_of.keys() != {t for group in groups for t in group.tensors}:
            raise ConfigError("the recipe merges other tensors than these layer groups hold.")
        rows = []
        for group in groups:
            found = {row_of[t] for t in group.tensors}
            first = min(found)
            for matrix in self.coefficients.values():
                if any((matrix[g] != matrix[first]).any() for g in found):
                    raise ConfigError(
                        f"the recipe's coefficients differ within the layer group {group.name!r}."
                    )
            rows.append(first)
        coefficients = {name: matrix[rows] for name, matrix in self.coefficients.items()}
        return dataclasses.replace(self, groups=groups, coefficients=coefficients)

    def to_dict(self) -> dict[str, Any]:
        """Plain data (str, float, list, dict), ready for JSON or YAML."""
        return {
            "format": FORMAT,
            "method": self.method,
            "base": dataclasses.asdict(self.base) if self.base else None,
            "models": [dataclasses.asdict(m) for m in self.models],
            **({"tokenizer": self.tokenizer} if self.tokenizer else {}),
            "fixed": dict(sorted(self.fixed.items())),
            "coefficients": {k: v.tolist() for k, v in sorted(self.coefficients.items())},
            "groups": [{"name": g.name, "tensors": list(g.tensors)} for g in self.groups],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """The inverse of :meth:`to_dict`.

        Raises:
            ConfigError: Not a recipe, or one of a newer format.
        """
        try:
            if int(data["format"]) > FORMAT:
                raise ConfigError(
                    f"recipe format {data['format']} is newer than this evomerge reads "
                    f"({FORMAT}); upgrade evomerge."
                )
            return cls(
                method=str(data["method"]),
                models=tuple(ModelRef(**m) for m in data["models"]),
                base=ModelRef(**data["base"]) if data.get("base") else None,
                groups=tuple(
                    LayerGroup(str(g["name"]), tuple(g["tensors"])) for g in data["groups"]
                ),
                coefficients={
                    str(k): np.array(v, dtype=np.float64) for k, v in data["coefficients"].items()
                },
                fixed=dict(data.get("fixed") or {}),
                tokenizer=str(data.get("tokenizer") or ""),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            if isinstance(e, ConfigError):
                raise
            raise ConfigError(
                f"not an evomerge recipe ({type(e).__name__}: {e}); expected the keys format, "
                "method, base, models, groups, coefficients, as written by `evomerge export`."
            ) from e

    def to_yaml(self) -> str:
        """YAML text that :meth:`from_yaml` reads back to an equal recipe."""
        data = self.to_dict()
        lines = [f"# evomerge recipe {self.id}"]
        matrices = data.pop("coefficients")
        groups = data.pop("groups")
        lines.append(yaml.safe_dump(data, sort_keys=False, width=99, allow_unicode=True).rstrip())
        lines.append("coefficients:  # parameter: one row per layer group, one column per expert")
        for name, rows in matrices.items():
            lines.append(f"  {json.dumps(name)}:")
            for row, group in zip(rows, groups, strict=True):
                lines.append(f"  - [{', '.join(map(repr, row))}]  # {group['name']}")
        tail = yaml.safe_dump({"groups": groups}, sort_keys=False, width=99, allow_unicode=True)
        return "\n".join([*lines, tail.rstrip()]) + "\n"

    @classmethod
    def from_yaml(cls, text: str) -> Recipe:
        """Reads what :meth:`to_yaml` wrote.

        Raises:
            ConfigError: Not YAML, or not a recipe.
        """
        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as e:
            raise ConfigError(f"the recipe is not valid YAML: {e}") from e
        if not isinstance(data, Mapping):
            raise ConfigError("the recipe file holds no mapping; expected an evomerge recipe.")
        return cls.from_dict(data)


def _canonical(data: Any) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


@functools.lru_cache(maxsize=8)
def _canonical_layout(
    base: ModelRef | None, groups: tuple[LayerGroup, ...], models: tuple[ModelRef, ...]
) -> tuple[str, str, str]:
    """Base, groups and models in canonical form: the same for all recipes of a search."""

    def plain(model: ModelRef) -> dict[str, str]:
        return {
            k: v for k, v in dataclasses.asdict(model).items() if k != "path" or not model.content
        }

    return (
        _canonical(plain(base) if base else None),
        _canonical([{"name": g.name, "tensors": list(g.tensors)} for g in groups]),
        _canonical([plain(m) for m in models]),
    )
