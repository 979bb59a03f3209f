"""mergekit's own results on small tensors, reproduced.

The expected values were written by benchmarks/golden/mergekit_tensors.py with mergekit 0.1.5.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.methods import METHODS, Sources

FOLDER = Path(__file__).parent / "golden"
CASES: list[dict[str, Any]] = json.loads((FOLDER / "mergekit_tensors.json").read_text())


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "mergekit_tensors.npz") as data:
        return dict(data)


def merged(case: dict[str, Any], arrays: dict[str, np.ndarray], device: torch.device):
    chosen = METHODS[case["method"]]
    models = {
        m: torch.from_numpy(arrays[f"{case['sources']}/{m}"]).to(device) for m in ("base", *"abc")
    }
    based = chosen.needs_base or case["fixed"].get("task_vectors", False)
    given = Sources("w", models["base"] if based else None, [models[m] for m in case["experts"]])
    fixed = {**chosen.fixed, **case["fixed"]}
    out = torch.full_like(models["base"], float("nan"))
    chosen.combine(out, chosen.prepare(given, None, fixed), case["coefficients"], fixed)
    return out


@pytest.mark.parametrize("method", sorted({c["method"] for c in CASES}))
def test_equals_mergekit(method: str, arrays: dict[str, np.ndarray], device: torch.device) -> None:
    for i, case in enumerate(CASES):
        if case["method"] != method:
            continue
        expected = torch.from_numpy(arrays[f"case/{i}"]).double()
        error = (merged(case, arrays, device).cpu().double() - expected).abs().max()
        scale = max(np.abs(arrays[f"{case['sources']}/{m}"]).max() for m in ("base", *"abc"))
        assert error <= 1e-6 * scale, f"{error:.2g} at {case}"


def test_every_method_has_several_settings() -> None:
    counts = Counter(c["method"] for c in CASES)
    assert min(counts.values()) >= 4, counts
