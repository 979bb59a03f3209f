"""Compiling in the background: equal results, never early, never a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from evomerge.methods import METHODS, Sources, compiled

N = compiled.SMALLEST + 5


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(compiled, "_kernels", {})
    monkeypatch.setattr(compiled, "COMPILE_AFTER", 0.0)
    monkeypatch.delenv("TORCH_COMPILE_DISABLE", raising=False)
    yield
    compiled.wait()


def states() -> list[bool]:
    """For every kernel that has been asked for, whether it is compiled."""
    return [kernel.run is not None for kernel in compiled._kernels.values()]


def combine(name: str, dtype: torch.dtype, seed: int = 0, n: int = N) -> torch.Tensor:
    """A merge of 2 experts with coefficients of its own for every seed."""
    random = torch.Generator().manual_seed(5)
    base, *experts = (torch.randn(n, generator=random).to(dtype) for _ in range(3))
    chosen = METHODS[name]
    basis = chosen.prepare(Sources("w", base, experts), None, chosen.fixed)
    draw = torch.Generator().manual_seed(seed)
    values = {
        p: (a.low + (a.high - a.low) * torch.rand(1 if a.shared else 2, generator=draw)).tolist()
        for p, a in chosen.parameters.items()
    }
    out = torch.full_like(base, float("nan"))
    chosen.combine(out, basis, values, chosen.fixed)
    return out


def check_equal(name: str, dtype: torch.dtype) -> None:
    eager = [combine(name, dtype, seed) for seed in range(3)]
    compiled.wait()
    assert states() == [True]
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for seed, expected in enumerate(eager):
        assert torch.allclose(combine(name, dtype, seed), expected, rtol=1e-6, atol=1e-6)
    combine(name, dtype, n=N + 4099)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs, "compiled again"


def test_compiled_equals_eager() -> None:
    """DELLA has ranks, uniforms, an election, and bf16 has conversions."""
    check_equal("della", torch.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "name", ["ties", "dare_linear", "dare_ties", "della_linear", "breadcrumbs", "breadcrumbs_ties"]
)
def test_every_method_compiled_equals_eager(name: str, dtype: torch.dtype) -> None:
    check_equal(name, dtype)


def test_small_tensors_and_short_work_stay_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    combine("ties", torch.float32, n=compiled.SMALLEST - 1)
    assert states() == []
    monkeypatch.setattr(compiled, "COMPILE_AFTER", 1e9)
    combine("ties", torch.float32)
    assert states() == [False]
    assert all(kernel.thread is None for kernel in compiled._kernels.values())


def test_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    combine("ties", torch.float32)
    assert states() == []


WITHOUT_A_COMPILER = """
import logging, torch
from evomerge.methods import compiled
from evomerge.methods.kernels import weighted_sum
logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")
compiled.COMPILE_AFTER = 0.0
tensors = [torch.ones(compiled.SMALLEST, dtype=torch.bfloat16) for _ in range(3)]
for _ in range(2):
    out = torch.zeros_like(tensors[0])
    weighted_sum(out, tensors, [0.5, 0.25, 0.5])
    compiled.wait()
    print((out == 1.25).all().item(), [k.run is None for k in compiled._kernels.values()])
"""


def test_without_a_compiler_merging_goes_on(tmp_path: Path) -> None:
    nowhere = {"CXX": "/nowhere/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_A_COMPILER],
        capture_output=True, text=True, check=True, env={**os.environ, **nowhere},
    )  # fmt: skip
    assert done.stdout.splitlines() == ["True [True]"] * 2
    assert done.stderr.count("merging goes on uncompiled") == 1
