"""Layer groups: which tensors share their coefficients."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.errors import ConfigError, unknown_name
from evomerge.experts import MergeTensor
from evomerge.recipe import LayerGroup
from evomerge.roles import ROLES

OUTSIDE = ("nearest", "joined", "split")


@dataclasses.dataclass(frozen=True)
class GroupSpec:
    """How tensors are cut into layer groups.

    Attributes:
        blocks: ``"each"`` layer by itself, ``"all"`` layers together, a number of equal blocks,
            or a list of inclusive ``[first, last]`` layer ranges.
        roles: ``"joined"``: one group per block; ``"split"``: one per block and role; or a
            mapping from group name to roles.
        outside: Embedding, head and final norm: ``"nearest"`` joins them with the first or the
            last block, ``"joined"`` makes one group of them, ``"split"`` one per role.
        custom: Group name to a regular expression (searched in the tensor's name); comes before
            everything else.
    """

    blocks: str | int | Sequence[Sequence[int]] = "all"
    roles: str | Mapping[str, Sequence[str]] = "joined"
    outside: str = "nearest"
    custom: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> GroupSpec:
        """Reads the ``groups`` section of a search space.

        Raises:
            ConfigError: An unknown key or a value of the wrong form.
        """
        fields = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(data, Mapping):
            raise ConfigError(
                f"groups: expected a mapping with {', '.join(sorted(fields))}, got {data!r}."
            )
        for key in data:
            if key not in fields:
                raise unknown_name("key of groups", str(key), fields)
        spec = cls(**dict(data))
        if spec.outside not in OUTSIDE:
            raise unknown_name("value of groups.outside", str(spec.outside), OUTSIDE)
        if isinstance(spec.roles, Mapping):
            for roles in spec.roles.values():
                for role in roles:
                    if role not in ROLES:
                        raise unknown_name("role", str(role), ROLES)
        elif spec.roles not in {"joined", "split"}:
            raise unknown_name("value of groups.roles", str(spec.roles), ("joined", "split"))
        for name, pattern in spec.custom.items():
            try:
                re.compile(pattern)
            except re.error as e:
                raise ConfigError(
                    f"groups.custom.{name}: {pattern!r} is not a regular expression: {e}."
                ) from e
        return spec


@dataclasses.dataclass(frozen=True)
class PlacedGroup:
    """A layer group and where it stands.

    Attributes:
        group: Name and tensors.
        depth: Mean relative depth of its tensors in [0, 1]: embedding 0, head and final norm 1.
        role: What sets it apart within its block: a role's or role group's name, a custom
            group's name, or ``""``.
        size: Number of entries.
    """

    group: LayerGroup
    depth: float
    role: str
    size: int


def build_groups(
    spec: GroupSpec, tensors: Sequence[MergeTensor], n_layers: int
) -> tuple[PlacedGroup, ...]:
    """Cuts tensors into groups that cover each exactly once, ordered by depth.

    Raises:
        ConfigError: Ranges that overlap, leave layers out or go beyond the model, or a custom
            pattern that matches nothing.
    """
    ranges = _ranges(spec.blocks, n_layers)
    block_of = {layer: i for i, r in enumerate(ranges) for layer in range(r[0], r[1] + 1)}
    members: dict[tuple[float, str, str], list[MergeTensor]] = {}
    unused = set(spec.custom)
    for tensor in tensors:
        key = _custom(spec, tensor)
        if key:
            unused.discard(key)
            place = (-1.0, key, key)
        elif tensor.layer is None and (spec.outside != "nearest" or not ranges):
            role = tensor.role if spec.outside == "split" else "outside"
            place = (len(ranges) + 1.0 if _is_last(tensor) else -0.5, role, role)
            if spec.outside == "joined":
                place = (len(ranges) + 1.0, role, role)
        else:
            if tensor.layer is None:
                block = len(ranges) - 1 if _is_last(tensor) else 0
            else:
                block = block_of[tensor.layer]
            role = _role(spec, tensor)
            name = _block_name(ranges[block])
            place = (float(block), f"{name}.{role}" if role else name, role)
        members.setdefault(place, []).append(tensor)
    if unused:
        name = min(unused)
        raise ConfigError(
            f"groups.custom.{name}: {spec.custom[name]!r} matches no tensor of the models (or an "
            f"earlier pattern took them all); tensor names look like {tensors[0].name!r}."
        )
    last = max(n_layers - 1, 1)
    placed = []
    for (_, name, role), found in sorted(members.items(), key=lambda item: item[0][:1]):
        depths = [t.layer / last for t in found if t.layer is not None]
        depth = sum(depths) / len(depths) if depths else float(_is_last(found[0]))
        group = LayerGroup(name, tuple(t.name for t in found))
        placed.append(PlacedGroup(group, depth, role, sum(t.size for t in found)))
    return tuple(placed)


def _is_last(tensor: MergeTensor) -> bool:
    return tensor.role != "embedding"


def _custom(spec: GroupSpec, tensor: MergeTensor) -> str:
    for name, pattern in spec.custom.items():
        if re.search(pattern, tensor.name):
            return name
    return ""


def _role(spec: GroupSpec, tensor: MergeTensor) -> str:
    if spec.roles == "joined":
        return ""
    if isinstance(spec.roles, Mapping):
        for name, roles in spec.roles.items():
            if tensor.role in roles:
                return name
        return "other"
    return tensor.role


def _block_name(block: Sequence[int]) -> str:
    first, last = block
    return f"layers.{first}" if first == last else f"layers.{first}-{last}"


def _ranges(blocks: Any, n_layers: int) -> list[tuple[int, int]]:
    if n_layers == 0:
        return []
    if blocks == "all":
        blocks = 1
    elif blocks == "each":
        blocks = n_layers
    if isinstance(blocks, int) and not isinstance(blocks, bool):
        if not 1 <= blocks <= n_layers:
            raise ConfigError(
                f"groups.blocks: expected 1 to {n_layers} blocks (the models have {n_layers} "
                f"layers), got {blocks}."
            )
        edges = [round(i * n_layers / blocks) for i in range(blocks + 1)]
        return [(a, b - 1) for a, b in itertools.pairwise(edges)]
    if isinstance(blocks, str) or not isinstance(blocks, Sequence):
        raise ConfigError(
            f"groups.blocks: expected 'each', 'all', a number or a list of [first, last] layer "
            f"ranges, got {blocks!r}."
        )
    ranges = []
    for block in blocks:
        if isinstance(block, str) or not isinstance(block, Sequence) or len(block) != 2:
            raise ConfigError(f"groups.blocks: expected [first, last] pairs, got {block!r}.")
        ranges.append((int(block[0]), int(block[1])))
    covered = [layer for a, b in ranges for layer in range(a, b + 1)]
    if sorted(covered) != list(range(n_layers)):
        raise ConfigError(
            f"groups.blocks: the ranges {[list(r) for r in ranges]} must cover layers 0 to "
            f"{n_layers - 1} exactly once (both ends are included)."
        )
    return sorted(ranges)
