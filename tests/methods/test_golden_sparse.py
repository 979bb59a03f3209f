"""The sparsifying methods against what mergekit 0.1.5 computed (benchmarks/golden)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from evomerge.methods import METHODS, Sources

FILE = safe_open(Path(__file__).parent / "golden" / "sparse.safetensors", framework="pt")
CASES = json.loads(FILE.metadata()["cases"])
NAMES = ("matrix", "vector", "stack", "one")
EXPERTS = ("a", "b", "c")


def goldens() -> Iterator[tuple[str, int]]:
    known = set(FILE.keys())
    return ((n, i) for n in NAMES for i in range(len(CASES)) if f"{n}.{i}" in known)


@pytest.mark.parametrize(("name", "i"), goldens(), ids=lambda x: x)
def test_equals_mergekit(name: str, i: int, device: torch.device) -> None:
    case = CASES[i]
    chosen = METHODS[case["method"]]
    base, *experts = (FILE.get_tensor(f"{name}.{w}").to(device) for w in ("base", *EXPERTS))
    fixed = {**chosen.fixed, "normalize": case["normalize"], "rescale": case["rescale"]}
    basis = chosen.prepare(Sources(name, base, experts, EXPERTS), None, fixed)
    out = torch.empty_like(base)
    chosen.combine(out, basis, case["coefficients"], fixed)
    expected = FILE.get_tensor(f"{name}.{i}").to(device)
    # Where base and task vector cancel, fp32 is as good as the tensor's size, not the entry's.
    assert torch.allclose(out, expected, rtol=1e-6, atol=1e-7 * float(expected.abs().max()))
