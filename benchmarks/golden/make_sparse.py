"""What mergekit computes for the sparsifying methods: tests/methods/golden/sparse.safetensors.

    PYTHONPATH=. /path/to/mergekit/env/bin/python benchmarks/golden/make_sparse.py

Run it in an environment that has mergekit (0.1.5 made the committed file) and evomerge's source on
the path. mergekit's methods run as they are; only where they draw a mask, ``torch.bernoulli`` is
replaced by a comparison with evomerge's uniforms, so that both drop the same entries.
"""

from __future__ import annotations

import json
from pathlib import Path

import mergekit.merge_methods.generalized_task_arithmetic as family
import torch
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import PerInputValues, TensorEntry, TensorGroup, TensorMetadata
from safetensors.torch import save_file

from evomerge.methods.counter import halves, key

OUT = Path(__file__).parents[2] / "tests" / "methods" / "golden" / "sparse.safetensors"
EXPERTS = ("a", "b", "c")
SHAPES = {"matrix": (24, 40), "vector": (37,), "stack": (3, 8, 5), "one": (1,)}
WEIGHTS = ([0.5, 0.3, 0.7], [1.0, 1.0, 1.0], [0.9, -0.4, 0.2])
DENSITIES = {
    "ties": ([0.3, 0.5, 0.2], [0.01, 1.0, 0.0]),
    "dare": ([0.5, 0.9, 0.2], [0.1, 1.0, 0.0]),
    "della": ([0.5, 0.8, 0.3], [0.4, 1.0, 0.0]),
    "breadcrumbs": ([0.9, 0.5, 0.98], [0.05, 1.0, 0.0]),
}
EXTRA = {"della": {"epsilon": (0.15, 0.02)}, "breadcrumbs": {"gamma": (0.01, 0.1)}}
METHODS = (
    "ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties",
)  # fmt: skip


def cases() -> list[dict]:
    """Every method at several settings; half of them with normalize and rescale switched."""
    found = []
    for method in METHODS:
        kind = method.split("_")[0]
        defaults = {p.name: p.default for p in registry.get(method).spec.parameters}
        for i, weight in enumerate(WEIGHTS):
            for j, density in enumerate(DENSITIES[kind]):
                coefficients = {"weight": weight, "density": density, "lambda": [(1.0, 0.6)[j]]}
                coefficients |= {p: [values[j]] for p, values in EXTRA.get(kind, {}).items()}
                switched = i == 1
                settings = {p: defaults[p] ^ switched for p in ("normalize", "rescale")}
                found.append({"method": method, "coefficients": coefficients, **settings})
    return found


def models(shape: tuple[int, ...], seed: int) -> list[torch.Tensor]:
    """A base and three experts whose task vectors overlap in part."""
    random = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=random)
    common = torch.randn(shape, generator=random)
    return [
        base,
        *(
            base + 0.02 * (0.5 * common + torch.randn(shape, generator=random).pow(3))
            for _ in EXPERTS
        ),
    ]


def merge(case: dict, name: str, tensors: list[torch.Tensor]) -> torch.Tensor:
    """mergekit's result, with our masks."""
    expert = -1
    original = family.sparsify

    def counted(*args, **kwargs):
        nonlocal expert
        expert += 1
        return original(*args, **kwargs)

    def drawn(p: torch.Tensor) -> torch.Tensor:
        u = halves(key("0", EXPERTS[expert], name), p.numel()).reshape(p.shape)
        return (u < p * 2.0**16).to(p.dtype)

    entries = [TensorEntry(id="base", tensor=tensors[0], is_base=True)]
    entries += [
        TensorEntry(id=e, tensor=t, is_base=False)
        for e, t in zip(EXPERTS, tensors[1:], strict=True)
    ]
    group = TensorGroup(entries=tuple(entries), metadata=TensorMetadata(name=name))
    parameters = {"int8_mask": False, "normalize": case["normalize"], "rescale": case["rescale"]}
    for p, values in case["coefficients"].items():
        if p == "lambda":
            parameters[p] = values[0]
        else:
            each = values * (len(EXPERTS) // len(values))
            parameters[p] = PerInputValues(list(zip(EXPERTS, each, strict=True)))
    bernoulli = torch.bernoulli
    family.sparsify, torch.bernoulli = counted, drawn
    try:
        return registry.get(case["method"]).merge_group(group, **parameters)
    finally:
        family.sparsify, torch.bernoulli = original, bernoulli


def main() -> None:
    tensors: dict[str, torch.Tensor] = {}
    everything = cases()
    for i, (name, shape) in enumerate(SHAPES.items()):
        given = models(shape, seed=i)
        for who, tensor in zip(("base", *EXPERTS), given, strict=True):
            tensors[f"{name}.{who}"] = tensor
        for j, case in enumerate(everything):
            if shape == (1,) and case["method"].startswith("della"):
                continue  # mergekit divides 0 by 0 in a row of one entry
            tensors[f"{name}.{j}"] = merge(case, name, given).contiguous()
    OUT.parent.mkdir(exist_ok=True)
    save_file(tensors, OUT, {"cases": json.dumps(everything)})
    print(f"{len(everything)} cases, {OUT.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
