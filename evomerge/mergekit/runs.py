"""Runs of layers that are merged alike: mergekit's slices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from evomerge.errors import ConfigError
from evomerge.roles import layer_of

V = TypeVar("V")


def runs_of_layers(values: Mapping[str, V]) -> list[tuple[int, int, list[str]]]:
    """Runs of layers with equal values: first, end, and the first layer's tensors.

    Args:
        values: Tensor name to whatever must be equal.

    Raises:
        ConfigError: Layers that are not numbered 0, 1, ... in one stack.
    """
    layers: dict[int, dict[str, V]] = {}
    prefixes = set()
    for name, value in values.items():
        layer = layer_of(name)
        if layer is not None:
            prefix, suffix = name.split(f".{layer}.", 1)
            prefixes.add(prefix)
            layers.setdefault(layer, {})[suffix] = value
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
