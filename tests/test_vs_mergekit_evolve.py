"""The stopwatch of benchmarks/vs_mergekit_evolve.py, on a program whose times are known."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import psutil
import pytest

PROGRAM = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
open(sys.argv[2], "w").write(str(child.pid))
time.sleep(0.5)
for i in range(int(sys.argv[3])):
    with open(sys.argv[1], "a") as f:
        f.write(f"{time.time()}\\n")
    end = time.perf_counter() + (0.1 if i >= 2 else 0.3)
    while time.perf_counter() < end:
        pass
print("no more")
child.kill()
"""


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    return importlib.import_module("vs_mergekit_evolve")


def search(benchmark, folder: Path, n: int):
    times = folder / "times"

    def ended() -> list[float]:
        return [float(t) for t in times.read_text().split()] if times.exists() else []

    command = [sys.executable, "-c", PROGRAM, str(times), str(folder / "child"), str(n)]
    return benchmark.Search(command, {}, folder / "log", ended, warm=3)


def test_steady_state_without_the_first_ones(benchmark, tmp_path) -> None:
    speed = benchmark.watch(search(benchmark, tmp_path, 100), 10)
    times = [float(t) for t in (tmp_path / "times").read_text().split()]
    windows = [(times[last] - times[2]) / (last - 2) for last in range(12, len(times))]
    assert any(speed.seconds == pytest.approx(window, rel=1e-9) for window in windows)
    assert 0.0 < speed.cpu_seconds < 2 * speed.seconds  # the loop burns what it waits
    assert speed.first_seconds > 0.5
    child = int((tmp_path / "child").read_text())
    running = {one.pid for one in psutil.process_iter() if benchmark.runs(one)}
    assert child not in running  # nothing is left running


def test_a_search_that_stops_early_is_an_error_with_its_log(benchmark, tmp_path) -> None:
    with pytest.raises(SystemExit, match="no more"):
        benchmark.watch(search(benchmark, tmp_path, 4), 10)
