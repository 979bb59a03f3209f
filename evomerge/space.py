"""SearchSpace: points of [0, 1]^d <-> recipes.

Every parameter's coefficients are a linear map of its axes: ``vec(C) = A v`` with axis values
``v = low + x (high - low)``. Sharing across groups or experts, and depth profiles with a few
knots, are only different matrices A; encoding a recipe is a least-squares solve with a check.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from evomerge.errors import ConfigError, unknown_name
from evomerge.experts import ExpertPool
from evomerge.groups import GroupSpec, PlacedGroup, build_groups
from evomerge.methods import Parameter, check_range, check_settings, method, usual_settings
from evomerge.recipe import Matrix, ModelRef, Recipe, Scalar, Vector
from evomerge.resources import resource_folder

_KEYS = ("description", "source", "method", "groups", "parameters", "fixed")
_PER = ("group", "expert")


@dataclasses.dataclass(frozen=True)
class Axis:
    """One searched number.

    Attributes:
        name: ``"weight[layers.0-7.mlp][math]"``; ``*`` stands for all.
        low: Value at x = 0.
        high: Value at x = 1.
        default: Where a search starts.
        step: Values are multiples of this, counted from ``low``; None for continuous.
    """

    name: str
    low: float
    high: float
    default: float
    step: float | None


@dataclasses.dataclass(frozen=True, eq=False)
class _Block:
    """The axes of one parameter and the map from their values to its matrix."""

    parameter: str
    axes: tuple[Axis, ...]
    matrix: Matrix  # (G * columns, n_axes)
    shape: tuple[int, int]
    constant: float = 0.0  # the value of a parameter that is not searched


class SearchSpace:
    """A box of recipes.

    Attributes:
        dim: Number of axes d.
        names: Their d names.
        axes: Their bounds and defaults.
        groups: The G layer groups with their depth and size.
        spec: The plain data that the space was built from.

    Args:
        spec: The mapping of a search-space file: ``method``, ``groups``, ``parameters``,
            ``fixed``.
        pool: The models.

    Raises:
        ConfigError: A bound, group or setting that makes no sense, or a space without axes.
        UnknownNameError: An unknown method, key, parameter, role or setting.
    """

    def __init__(self, spec: Mapping[str, Any], pool: ExpertPool) -> None:
        for key in spec:
            if key not in _KEYS:
                raise unknown_name("key of a search space", str(key), _KEYS)
        if "method" not in spec:
            raise ConfigError("the search space names no merge method; expected 'method: NAME'.")
        self.spec: dict[str, Any] = {k: v for k, v in spec.items() if k not in _KEYS[:2]}
        chosen = method(str(spec["method"]))
        self.method = chosen.name
        for key in ("fixed", "parameters"):
            if not isinstance(spec.get(key) or {}, Mapping):
                raise ConfigError(f"{key}: expected a mapping, got {spec[key]!r}.")
        self.fixed: dict[str, Scalar] = dict(spec.get("fixed") or {})
        check_settings(
            chosen.name, self.fixed, has_base=pool.base is not None, n_experts=len(pool.experts)
        )
        groups = GroupSpec.parse(spec.get("groups") or {})
        self.groups = build_groups(groups, pool.tensors, pool.n_layers)
        self._base: ModelRef | None = pool.base.ref if pool.base else None
        self._models, self._tokenizer = pool.refs, pool.spelling
        given = spec.get("parameters") or {}
        for name in given:
            if name not in chosen.parameters:
                raise unknown_name(f"parameter of {chosen.name!r}", str(name), chosen.parameters)
        self._blocks = tuple(
            _block(name, given.get(name), parameter, self.groups, [m.name for m in self._models])
            for name, parameter in chosen.parameters.items()
        )
        self.axes = tuple(axis for block in self._blocks for axis in block.axes)
        self.names = tuple(axis.name for axis in self.axes)
        self.dim = len(self.axes)
        if self.dim == 0:
            raise ConfigError(
                "the search space is empty: no parameter has a range to search (low < high)."
            )

    @property
    def start(self) -> Vector:
        """(d,) the default point."""
        return self.snap(np.array([(a.default - a.low) / (a.high - a.low) for a in self.axes]))

    def values(self, x: Vector) -> Vector:
        """(d,) axis values in their own units."""
        low = np.array([a.low for a in self.axes])
        high = np.array([a.high for a in self.axes])
        values: Vector = low + np.asarray(x, dtype=np.float64) * (high - low)
        return values

    def linear_map(self, parameter: str) -> Matrix | None:
        """(G * K, d) map from axis values to the (G, K) coefficients of one parameter, row-major.

        None where the axes belong to other parameters too, or the parameter is held fixed.
        """
        for block in self._blocks:
            if block.parameter == parameter and len(block.axes) == self.dim:
                return block.matrix
        return None

    def snap(self, x: Vector) -> Vector:
        """The nearest point that :meth:`decode` can tell apart: axes with a step are rounded.

        What an optimizer is told is the snapped point, since that is what was evaluated.
        """
        x = np.array(x, dtype=np.float64)
        if x.shape != (self.dim,):
            raise ConfigError(f"expected a point of shape ({self.dim},), got {x.shape}.")
        for i, axis in enumerate(self.axes):
            if axis.step is not None:
                width = axis.step / (axis.high - axis.low)
                x[i] = min(round(x[i] / width) * width, np.floor(1 / width + 1e-9) * width, 1.0)
        return x

    def decode(self, x: Vector) -> Recipe:
        """The recipe at ``x``.

        Args:
            x: (d,) in [0, 1].

        Raises:
            ConfigError: A wrong shape, or an entry outside [0, 1].
        """
        x = self.snap(x)
        if not ((x >= 0) & (x <= 1)).all():
            raise ConfigError(f"expected entries in [0, 1], got {x.min():g} to {x.max():g}.")
        values = self.values(x)
        coefficients: dict[str, Matrix] = {}
        offset = 0
        for block in self._blocks:
            n = len(block.axes)
            part = block.constant + block.matrix @ values[offset : offset + n]
            coefficients[block.parameter] = part.reshape(block.shape)
            offset += n
        return self.recipe(coefficients)

    def recipe(self, coefficients: Mapping[str, Matrix]) -> Recipe:
        """A recipe with this space's method, models and groups, inside the box or not."""
        return Recipe(
            method=self.method,
            models=self._models,
            base=self._base,
            groups=tuple(g.group for g in self.groups),
            coefficients=coefficients,
            fixed=self.fixed,
            tokenizer=self._tokenizer,
        )

    def encode(self, recipe: Recipe) -> Vector:
        """The point whose recipe this is, for warm starts.

        Args:
            recipe: In any layer groups: a coarser recipe is a point of a finer space.

        Raises:
            ConfigError: The space cannot express it: another method, other models or settings,
                coefficients that vary where the space shares them, or out of bounds.
        """
        if recipe.groups != tuple(g.group for g in self.groups):
            recipe = recipe.with_groups(tuple(g.group for g in self.groups))
        mine, usual = self.decode(self.start), usual_settings(self.method)
        unlike = [
            what
            for what, same in (
                ("merge method", mine.method == recipe.method),
                ("models", _contents(mine) == _contents(recipe)),
                ("tokenizer", mine.tokenizer == recipe.tokenizer),
                ("fixed settings", {**usual, **mine.fixed} == {**usual, **recipe.fixed}),
                ("parameters", mine.coefficients.keys() == recipe.coefficients.keys()),
            )
            if not same
        ]
        if unlike:
            raise ConfigError(
                f"the recipe has other {' and '.join(unlike)} than the search space."
            )
        parts = []
        for block in self._blocks:
            target = recipe.coefficients[block.parameter].reshape(-1) - block.constant
            values = np.linalg.lstsq(block.matrix, target, rcond=None)[0]
            error = np.abs(block.matrix @ values - target).max()
            if error > 1e-9 * max(1.0, float(np.abs(target).max())):
                raise ConfigError(
                    f"the recipe's {block.parameter!r} varies where the space holds it fixed or "
                    "shares one value."
                )
            for axis, value in zip(block.axes, values, strict=True):
                x = (value - axis.low) / (axis.high - axis.low)
                if not -1e-9 <= x <= 1 + 1e-9:
                    raise ConfigError(
                        f"{axis.name} = {value:g} is outside the space's [{axis.low:g}, "
                        f"{axis.high:g}]."
                    )
                parts.append(min(max(x, 0.0), 1.0))
        x = np.array(parts)
        if np.abs(self.snap(x) - x).max(initial=0.0) > 1e-9:
            raise ConfigError("the recipe lies between the steps of the search space.")
        return self.snap(x)


def _block(
    name: str,
    given: Any,
    parameter: Parameter,
    groups: Sequence[PlacedGroup],
    experts: Sequence[str],
) -> _Block:
    """Builds one parameter's axes; a bare number fixes the parameter."""
    keys = ("low", "high", "default", "per", "knots", "step")
    columns = 1 if parameter.shared else len(experts)
    shape = (len(groups), columns)
    if given is not None and not isinstance(given, Mapping):
        given = {"low": given, "high": given}
    data = dict(given or {})
    for key in data:
        if key not in keys:
            raise unknown_name(f"key of parameters.{name}", str(key), keys)
    low = _number(data.get("low", parameter.low), f"parameters.{name}.low")
    high = _number(data.get("high", parameter.high), f"parameters.{name}.high")
    if low > high:
        raise ConfigError(f"parameters.{name}: low must be <= high, got {low:g} > {high:g}.")
    check_range(f"parameters.{name}", parameter, low, high)
    fallback = min(max(parameter.default, low), high)
    default = _number(data.get("default", fallback), f"parameters.{name}.default")
    if not low <= default <= high:
        raise ConfigError(
            f"parameters.{name}.default: expected a value in [{low:g}, {high:g}], got {default:g}."
        )
    if low == high:
        return _Block(name, (), np.zeros((shape[0] * shape[1], 0)), shape, constant=low)
    step = data.get("step")
    if step is not None and not 0 < _number(step, f"parameters.{name}.step") <= high - low:
        raise ConfigError(f"parameters.{name}.step: expected 0 < step <= high - low, got {step}.")
    per = data.get("per", ["group"] if parameter.shared else ["group", "expert"])
    if isinstance(per, str) or not all(p in _PER for p in per):
        raise ConfigError(
            f"parameters.{name}.per: expected a list of 'group' and 'expert', got {per!r}."
        )
    by_expert = "expert" in per and not parameter.shared
    labels = list(experts) if by_expert else ["*"]
    mix, rows = _depth_map(name, groups, "group" in per, data.get("knots"))
    spread = np.eye(columns) if by_expert else np.ones((columns, 1))
    matrix: Matrix = np.kron(mix, spread).astype(np.float64)
    axes = tuple(
        Axis(f"{name}[{row}][{label}]", low, high, default, step)
        for row in rows
        for label in labels
    )
    return _Block(name, axes, matrix, shape)


def _depth_map(
    name: str, groups: Sequence[PlacedGroup], by_group: bool, knots: int | None
) -> tuple[Matrix, list[str]]:
    """(G, rows) map from per-row values to per-group values, and the rows' names."""
    if knots is None:
        if by_group:
            return np.eye(len(groups)), [g.group.name for g in groups]
        return np.ones((len(groups), 1)), ["*"]
    if isinstance(knots, bool) or not isinstance(knots, int) or knots < 2:
        raise ConfigError(f"parameters.{name}.knots: expected an integer >= 2, got {knots!r}.")
    roles = list(dict.fromkeys(g.role for g in groups))
    matrix = np.zeros((len(groups), knots * len(roles)))
    for i, group in enumerate(groups):
        at = group.depth * (knots - 1)
        left = min(int(at), knots - 2)
        column = roles.index(group.role) * knots + left
        matrix[i, column] = 1 - (at - left)
        matrix[i, column + 1] = at - left
    used = np.flatnonzero(np.abs(matrix).sum(axis=0) > 0)
    rows = [
        f"depth {k / (knots - 1):.2f}" + (f".{role}" if role else "")
        for role in roles
        for k in range(knots)
    ]
    return matrix[:, used], [rows[i] for i in used]


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
        raise ConfigError(f"{where}: expected a finite number, got {value!r}.")
    return float(value)


def _contents(recipe: Recipe) -> list[str | None]:
    """What the models are, by content where it is known."""
    models = (recipe.base, *recipe.models)
    return [(m.content or m.path) if m else None for m in models]


def load_space(name_or_file: str) -> dict[str, Any]:
    """Reads a search-space file.

    Args:
        name_or_file: A path, or the name of a file in ``search_spaces/`` of the current folder
            or of evomerge.

    Raises:
        UnknownNameError: No such file or name.
        ConfigError: Not a YAML mapping.
    """
    path = Path(name_or_file).expanduser()
    if not (path.suffix in {".yaml", ".yml"} and path.is_file()):
        known = known_spaces()
        if name_or_file not in known:
            raise unknown_name(
                "search space", name_or_file, known, "Give one of them or the path of a YAML file."
            )
        path = known[name_or_file]
    try:
        data = yaml.safe_load(path.read_text())
    except yaml.YAMLError as e:
        raise ConfigError(f"search space {path} is not valid YAML: {e}") from e
    if not isinstance(data, dict):
        raise ConfigError(f"search space {path} holds no mapping; expected method, groups, ...")
    return data


def known_spaces() -> dict[str, Path]:
    """Name to file: evomerge's own and those of ``./search_spaces``, which come first."""
    folders = [resource_folder("search_spaces"), Path("search_spaces")]
    return {p.stem: p for folder in folders for p in sorted(folder.glob("*.yaml"))}
