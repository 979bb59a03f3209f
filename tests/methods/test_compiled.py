"""Compiling in the background: equal results, never early, never a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.methods import METHODS, Sources, compiled, native
from evomerge.methods.kernels import weighted_sum
from evomerge.methods.lanes import Fused

N = compiled.SMALLEST + 5
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
FAMILY = (
    "ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties",
)  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[None]:
    monkeypatch.setattr(compiled, "_kernels", {})
    monkeypatch.setitem(compiled.COMPILE_AFTER, "cpu", 0.0)
    monkeypatch.setenv("EVOMERGE_CACHE", str(cache))
    monkeypatch.delenv("TORCH_COMPILE_DISABLE", raising=False)
    yield
    compiled.wait()


def states() -> list[bool]:
    """For every kernel that has been asked for, whether it is compiled."""
    return [kernel.run is not None for kernel in compiled._kernels.values()]


def combine(
    name: str,
    dtype: torch.dtype,
    seed: int = 0,
    n: int = N,
    k: int = 2,
    skip: int = 0,
    expert_dtype: torch.dtype | None = None,
    **fixed: Any,
) -> torch.Tensor:
    """A merge with coefficients of its own for every seed, of tensors that start within others."""
    random = torch.Generator().manual_seed(5)
    base, *experts = (torch.randn(n + skip, generator=random)[skip:] for _ in range(k + 1))
    experts = [(base + 0.1 * e).to(expert_dtype or dtype) for e in experts]
    chosen = METHODS[name]
    settings = {**chosen.fixed, **fixed}
    within = torch.cat([torch.zeros(skip), base]).to(dtype)[skip:]
    basis = chosen.prepare(Sources("w", within, experts), None, settings)
    draw = torch.Generator().manual_seed(seed)
    values = {
        p: (a.low + (a.high - a.low) * torch.rand(1 if a.shared else k, generator=draw)).tolist()
        for p, a in chosen.parameters.items()
    }
    out = torch.full((n + skip,), float("nan"), dtype=dtype)[skip:]
    chosen.combine(out, basis, values, settings)
    return out


def check_equal(name: str, dtype: torch.dtype, **how: Any) -> None:
    """To the last bit, whatever the coefficients and the length."""
    eager = [combine(name, dtype, seed, **how) for seed in range(3)]
    compiled.wait()
    assert states() == [True]
    for seed, expected in enumerate(eager):
        assert torch.equal(combine(name, dtype, seed, **how), expected)
    assert len(states()) == 1, "other coefficients are another program"


def switches(name: str) -> list[dict[str, Any]]:
    """The settings of a method that lead to other programs than its defaults."""
    fixed = METHODS[name].fixed
    found: list[dict[str, Any]] = [{}, {"normalize": not fixed["normalize"]}, {"rescale": "l1"}]
    return [*found, {"election": "paper"}] if "election" in fixed else found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*FAMILY, "linear", "task_arithmetic"])
def test_compiled_equals_eager(name: str, dtype: torch.dtype) -> None:
    check_equal(name, dtype)


@pytest.mark.parametrize("name", FAMILY)
def test_every_form_equals_eager(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for fixed in switches(name):
        monkeypatch.setattr(compiled, "_kernels", {})
        check_equal(name, torch.bfloat16, **fixed)


@pytest.mark.parametrize("k", [1, 3, 9])
def test_any_number_of_experts(k: int) -> None:
    check_equal("della", torch.bfloat16, k=k)


@pytest.mark.parametrize("n", range(compiled.SMALLEST, compiled.SMALLEST + 70, 23))
@pytest.mark.parametrize("skip", [1, 2, 7])
def test_lengths_and_starts_that_fit_no_vector(n: int, skip: int) -> None:
    check_equal("della", torch.bfloat16, n=n, skip=skip)
    check_equal_of_one_kernel("ties", torch.float32, n=n, skip=skip)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["linear", "dare_ties"])
@pytest.mark.parametrize("skip", [0, 5])
def test_what_is_written_past_the_cache(name: str, dtype: torch.dtype, skip: int) -> None:
    check_equal(name, dtype, n=(1 << 21) // dtype.itemsize + 1001, skip=skip)


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_density_1_keeps_everything_and_0_nothing(name: str, dtype: torch.dtype) -> None:
    base, expert = torch.zeros(N, dtype=dtype), torch.ones(N, dtype=dtype)
    chosen = METHODS[name]
    basis = chosen.prepare(Sources("w", base, [expert, 2 * expert]), None, chosen.fixed)
    defaults = {p: [a.default] for p, a in chosen.parameters.items() if a.shared}
    for _ in range(2):
        for densities, expected in (([1.0, 0.0], 1), ([0.0, 1.0], 2), ([1.0, 1.0], 3)):
            out = torch.full_like(base, 7)
            values = {**defaults, "weight": [1.0, 1.0], "density": densities}
            chosen.combine(out, basis, values, chosen.fixed)
            assert (out == expected).all()
        compiled.wait()
    assert states() == [True]


def check_equal_of_one_kernel(name: str, dtype: torch.dtype, **how: Any) -> None:
    compiled._kernels.clear()
    check_equal(name, dtype, **how)


def test_experts_in_another_dtype_than_the_base() -> None:
    check_equal("della", torch.bfloat16, expert_dtype=torch.float32)
    check_equal_of_one_kernel("ties", torch.float32, expert_dtype=torch.float16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_16_bit_number_is_read_and_rounded_as_torch_does(dtype: torch.dtype) -> None:
    """All but NaN, whose payload is nobody's business; sums that overflow and underflow, too."""
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    other = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))]
    for _ in range(2):
        for weights in ([1.0, 1e-6], [0.7, 0.3], [2.0, -1.0], [1e-5, 1e-7]):
            out = torch.empty_like(every)
            weighted_sum(out, [every, other], weights)
            a, b = (t.float() * w for t, w in zip((every, other), weights, strict=True))
            assert torch.equal(out.nan_to_num(7.0), (a + b).to(dtype).nan_to_num(7.0))
            assert torch.equal(out.isnan(), (a + b).isnan())
        compiled.wait()
    assert states() == [True]


def test_fp32_is_rounded_to_16_bits_as_torch_does() -> None:
    """Ties between two neighbours, subnormals, the largest numbers."""
    bits = torch.arange(-(1 << 31), 1 << 31, 40_503, dtype=torch.int64).to(torch.int32)
    ties = (torch.arange(1 << 17, dtype=torch.int32) << 15) | 0x1000 | (1 << 12)
    wide = torch.cat([bits, ties]).view(torch.float32)
    wide = wide[~wide.isnan()]
    for dtype in (torch.bfloat16, torch.float16):
        out = torch.empty_like(wide, dtype=dtype)
        for _ in range(2):
            weighted_sum(out, [wide], [1.0])
            assert torch.equal(out, wide.to(dtype))
            compiled.wait()
    assert states() == [True, True]


def test_several_threads_write_what_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_PER_THREAD", 1 << 10)
    threads = torch.get_num_threads()
    eager = combine("della", torch.bfloat16, n=99_999)
    compiled.wait()
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            assert torch.equal(combine("della", torch.bfloat16, n=99_999), eager)
    finally:
        torch.set_num_threads(threads)
    assert states() == [True]


@pytest.mark.parametrize("name", ["ties", "della", "breadcrumbs"])
def test_the_form_for_torchs_compiler_is_the_same_function(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced on a GPU only; what is traced runs anywhere."""
    expected = combine(name, torch.bfloat16)

    def traced(program: compiled.Program, *_: Any) -> compiled.Run:
        def run(out: Any, tensors: Any, numbers: Any, whole: Any) -> None:
            floats = torch.tensor(numbers, dtype=program.wide).unbind()
            integers = torch.tensor(whole, dtype=torch.int32).unbind()
            flats = [t.view(-1) for t in tensors]
            program.piece(out, flats, floats, integers, Fused(out))

        return run

    monkeypatch.setattr(compiled, "ready", traced)
    assert torch.equal(combine(name, torch.bfloat16), expected)


def test_small_tensors_and_short_work_stay_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    combine("ties", torch.float32, n=compiled.SMALLEST - 1)
    assert states() == []
    monkeypatch.setitem(compiled.COMPILE_AFTER, "cpu", 1e9)
    combine("ties", torch.float32)
    assert states() == [False]
    assert all(kernel.thread is None for kernel in compiled._kernels.values())


def test_small_tensors_use_what_others_compiled() -> None:
    few = compiled.SMALLEST // 2 + 1
    eager = combine("della", torch.bfloat16, n=few)
    combine("della", torch.bfloat16)
    compiled.wait()
    (kernel,) = compiled._kernels.values()
    work, run, calls = kernel.work, kernel.run, []

    def counted(*arguments: Any) -> None:
        assert run is not None
        calls.append(arguments)
        run(*arguments)

    kernel.run = counted
    assert torch.equal(combine("della", torch.bfloat16, n=few), eager)
    assert (len(calls), kernel.work) == (1, work)


def test_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    combine("ties", torch.float32)
    assert states() == []


def test_tensors_that_nothing_aligns_stay_eager() -> None:
    raw = torch.zeros(4 * N + 1, dtype=torch.uint8)
    odd = torch.frombuffer(raw.numpy(), dtype=torch.float32, offset=1, count=N)
    weighted_sum(torch.empty(N, dtype=torch.bfloat16), [odd], [1.0])
    assert states() == []


def test_tensors_that_are_not_contiguous_stay_eager() -> None:
    turned = torch.arange(2.0 * N).view(2, N).T
    out = torch.empty(N, 2)
    for _ in range(2):
        weighted_sum(out, [turned, torch.ones(N, 2)], [1.0, 0.5])
        assert torch.equal(out, turned + 0.5)
        compiled.wait()
    assert states() == []


FORK = """
import os, torch
from evomerge.methods import compiled, native
from evomerge.methods.kernels import weighted_sum
compiled.COMPILE_AFTER["cpu"], native._PER_THREAD = 0.0, 1 << 10
torch.set_num_threads(2)
out, ones = torch.zeros(compiled.SMALLEST), torch.ones(compiled.SMALLEST)
def merged(weight):
    weighted_sum(out, [ones], [weight])
    return bool((out == weight).all())
merged(1.0)
compiled.wait()
print(merged(2.0), native._helpers.cache_info().currsize)
child = os.fork()
if child == 0:
    os._exit(0 if merged(3.0) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), merged(4.0))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_has_threads_of_its_own() -> None:
    command = [sys.executable, "-c", FORK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["True", "1", "0", "True"]


SCRIPT = """
import logging, torch
from evomerge.methods import compiled
from evomerge.methods.kernels import weighted_sum
logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")
compiled.COMPILE_AFTER["cpu"] = 0.0
tensors = [torch.ones(compiled.SMALLEST, dtype=torch.bfloat16) for _ in range(3)]
for _ in range(2):
    out = torch.zeros_like(tensors[0])
    weighted_sum(out, tensors, [0.5, 0.25, 0.5])
    compiled.wait()
    print((out == 1.25).all().item(), [k.run is not None for k in compiled._kernels.values()])
"""


def start(**environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def libraries(cache: Path) -> list[Path]:
    return sorted((cache / "native").iterdir())


@pytest.mark.parametrize("environment", [{"CC": "/nowhere/cc"}, {"PATH": "/nowhere"}])
def test_without_a_compiler_merging_goes_on(tmp_path: Path, environment: dict[str, str]) -> None:
    process = start(EVOMERGE_CACHE=str(tmp_path), **environment)
    out, err = process.communicate()
    assert out.splitlines() == ["True [False]"] * 2
    assert err.count("merging goes on uncompiled") == 1


def test_two_processes_at_once_and_a_third_that_finds_what_they_made(tmp_path: Path) -> None:
    processes = [start(EVOMERGE_CACHE=str(tmp_path)) for _ in range(2)]
    assert [p.communicate() for p in processes] == [("True [True]\n" * 2, "")] * 2
    (library,) = libraries(tmp_path)
    before = library.stat().st_mtime_ns
    assert start(EVOMERGE_CACHE=str(tmp_path)).communicate()[0] == "True [True]\n" * 2
    assert [f.stat().st_mtime_ns for f in libraries(tmp_path)] == [before]


def test_a_damaged_library_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path))
    tensors = [torch.ones(N, dtype=torch.bfloat16) for _ in range(2)]

    def check() -> None:
        out = torch.zeros(N, dtype=torch.bfloat16)
        native.build({"LINEAR": 1, "K": 2}, [torch.bfloat16] * 3)(out, tensors, [0.5, 0.25], [])
        assert (out == 0.75).all()

    check()
    (library,) = libraries(tmp_path)
    whole = library.read_bytes()
    for broken in (b"", b"x" * 999, whole[: len(whole) // 2], whole[:-40] + bytes(40)):
        library.unlink()  # this process has it mapped
        library.write_bytes(broken)
        check()
        assert native._is_whole(library)


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("a file where a folder is wanted, which no user may write into")
    assert start(EVOMERGE_CACHE=str(in_the_way)).communicate() == ("True [True]\n" * 2, "")
