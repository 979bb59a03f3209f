"""Candidates per minute of a search: ours and mergekit-evolve's, end to end.

    python benchmarks/vs_mergekit_evolve.py --mergekit-python /path/to/environment/bin/python
        [--models zoo,llama] [--dtypes bfloat16,float32] [--candidates 8] [--threads 1]
        [--in-memory]

Both tools search the same models on the same 50 documents of 4 choices each (accuracy, no few-shot
examples), by task arithmetic with one weight per expert and quarter of the layers, CMA-ES, one
worker on Ray with ``--threads`` threads; one after the other on this machine, each as its own
command starts it.

* ``zoo``: the built-in base and three experts of 1M parameters; sums and products, 12 tokens a
  request, of which the choice is one.
* ``llama``: a Llama shape of 106M parameters with a vocabulary of 32,000 words and random weights,
  base and two experts, saved in bfloat16; 7 tokens a request.
* ``zoo_code`` (not by default): ``zoo`` on lines of source code, 92 tokens a request. The longer
  the requests, the more of both tools' time is the same forward pass.

Figures, for each model:

* ``<model>_speedup``: our candidates per minute in units of theirs, in the steady state: from the
  end of one candidate to the end of a later one (merge, score, store, tell, ask), the first ones
  left out. Both in bfloat16, which mergekit-evolve does not let one change (``_float32_speedup``:
  ours in float32), and with our cache of scores empty at the start.
  Its figures are of its default strategy, a checkpoint on disk for every candidate, at batch size
  32, the better one (``_in_memory_speedup``: against ``--in-memory``, which is batch size 1).
* ``<model>_cpu_speedup``: the same in CPU seconds of all processes, for a machine that is shared.
* ``<model>_first_seconds``, ``<model>_mergekit_first_seconds``: from the command to the first
  scored candidate. Both have the models read; lm-eval's own tasks are indexed by theirs alone.

Without ``--mergekit-python`` what depends on it is null. Its environment needs mergekit 0.1.5,
lm-eval 0.4.13, Ray, cma and pandas; ``golden/mergekit_evolve_shims.py`` says what makes it run
without a GPU. Its one worker scores with ``lm_eval.simple_evaluate``, about a second of which is
spent outside the model.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import yaml
from choice_cases import CASES, N_DOCUMENTS, TASK, Case


@dataclasses.dataclass(frozen=True)
class Search:
    """A search that can be started.

    Attributes:
        command: Starts it.
        env: Its environment, beside this process's.
        log: Takes what it prints.
        ended: When candidates were finished (seconds since 1970), as far as it has come.
        warm: First candidates, which do not count.
    """

    command: Sequence[str]
    env: dict[str, str]
    log: Path
    ended: Callable[[], list[float]]
    warm: int


@dataclasses.dataclass(frozen=True)
class Speed:
    """Steady state, per candidate, and the start."""

    seconds: float
    cpu_seconds: float
    first_seconds: float


def cpu_seconds(process: psutil.Process) -> float:
    """Of a process and of all that it started, those that have ended included."""
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(one.cpu_times()[:4])  # user, system, and of children that were waited for
    return total


def watch(search: Search, n: int, limit: float = 900.0) -> Speed:
    """Runs a search until ``n`` candidates are scored after its first ones, and ends it."""
    begun = time.time()
    with search.log.open("w") as out:
        process = psutil.Popen(
            search.command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **search.env}
        )
    counted: list[tuple[int, float]] = []  # (candidates, CPU seconds) at the two ends
    try:
        while len(times := sorted(search.ended())) < search.warm + n:
            if process.poll() is not None or time.time() - begun > limit:
                raise SystemExit(f"stopped after {len(times)} candidates:\n{tail(search.log)}")
            if len(times) >= search.warm and not counted:
                counted.append((len(times), cpu_seconds(process)))
            time.sleep(0.02)
        counted.append((len(times), cpu_seconds(process)))
    finally:
        end(process)
    (first, before), (last, after) = counted[0], counted[-1]
    seconds = (times[-1] - times[search.warm - 1]) / (len(times) - search.warm)
    return Speed(seconds, (after - before) / max(1, last - first), times[0] - begun)


def end(process: psutil.Popen) -> None:
    """Kills a program and all it started, and returns when none of them runs any more."""
    family = [process]
    with contextlib.suppress(psutil.NoSuchProcess):
        process.suspend()  # so that it starts nothing more
        family += process.children(recursive=True)
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    # A kill is a request: on a busy machine the kernel carries it out some time later.
    while any(runs(one) for one in family[1:]):
        time.sleep(0.02)


def runs(process: psutil.Process) -> bool:
    """Whether it still does anything: a zombie, which nobody reaped, does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-30:])


def ours(case: Case, folder: Path, dtype: str, threads: int, n: int) -> Search:
    """``evomerge search``: a candidate is finished when its scores are on disk."""
    config = {
        "models": {
            "base": str(case.base),
            "experts": {name: str(path) for name, path in case.experts.items()},
        },
        "objective": {"choice": {"task": TASK, "metric": "acc"}},
        "evaluator": {
            "include_path": str(case.folder),
            "splits": {"search": N_DOCUMENTS, "select": 0, "test": 0},
        },
        "executor": {"workers": 1, "cpus_per_worker": threads},
        "search_space": "blockwise",
        "dtype": dtype,
        "n_trials": 2 * n,
        "run_dir": str(folder / "run"),
    }
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump(config))
    start = "import sys; from evomerge.cli import main; sys.exit(main(sys.argv[1:]))"
    env = {"EVOMERGE_CACHE": str(folder / "cache"), "HF_HOME": str(folder / "hf")}

    def ended() -> list[float]:
        return [f.stat().st_mtime for f in (folder / "run" / "scores").glob("*-search.npz")]

    command = [sys.executable, "-c", start, "search", str(file), "--quiet"]
    return Search(command, env, folder / "log", ended, len(case.experts) + 3)


def theirs(case: Case, folder: Path, start: Sequence[str], threads: int, n: int) -> Search:
    """``mergekit-evolve``: a candidate is finished when its score is known.

    Args:
        case: What is searched.
        folder: Takes all that it writes.
        start: Its interpreter, and further options.
        threads: Of its worker.
        n: Candidates that will be waited for.
    """
    python, *more = start
    config = {
        "genome": {
            "models": [str(path) for path in case.experts.values()],
            "base_model": str(case.base),
            "merge_method": "task_arithmetic",
            "layer_granularity": case.layers // 4,
        },
        "tasks": [{"name": TASK, "metric": "acc,none"}],
        "apply_chat_template": False,
        "fewshot_as_multiturn": False,
    }
    file, times = folder / "evolve.yaml", folder / "times"
    file.write_text(yaml.safe_dump(config))
    env = {
        "MERGEKIT_EVOLVE_TIMES": str(times),
        "PYTHONPATH": str(Path(__file__).parent / "golden"),
        "HF_HOME": str(folder / "hf"),
        "OMP_NUM_THREADS": str(threads),  # without it Ray gives the worker one
        "RAY_USAGE_STATS_ENABLED": "0",
    }

    def ended() -> list[float]:
        lines = times.read_text().split("\n")[:-1] if times.exists() else []
        return [json.loads(line)["ended"] for line in lines]

    command = [
        python, "-m", "mergekit_evolve_shims", str(file), "--storage-path", str(folder / "store"),
        "--num-gpus", "1", "--no-merge-cuda", "--task-search-path", str(case.folder),
        "--batch-size", "32", "--max-fevals", str(2 * n), "--no-save-final-model", *more,
    ]  # fmt: skip
    return Search(command, env, folder / "log", ended, 1)


def measure(name: str, o: argparse.Namespace) -> dict[str, float | None]:
    """Everything on one model."""
    figures: dict[str, float | None] = {}
    with contextlib.ExitStack() as stack:

        def empty() -> Path:
            return Path(stack.enter_context(tempfile.TemporaryDirectory()))

        case = CASES[name](empty())
        kinds: dict[str, list[str]] = {"mergekit": []}
        if o.in_memory:
            kinds["mergekit_in_memory"] = ["--in-memory"]
        speeds = {}
        for kind, more in kinds.items() if o.mergekit_python else ():
            start = [o.mergekit_python, *more]
            search = theirs(case, empty(), start, o.threads, o.candidates)
            speeds[kind] = watch(search, o.candidates)
        for dtype in o.dtypes.split(","):
            search = ours(case, empty(), dtype, o.threads, 3 * o.candidates)
            speeds[dtype] = watch(search, 3 * o.candidates)
    for kind, speed in speeds.items():
        prefix = "" if kind == "bfloat16" else f"{kind}_"
        figures[f"{prefix}per_minute"] = 60 / speed.seconds
        figures[f"{prefix}seconds"] = speed.seconds
        figures[f"{prefix}cpu_seconds"] = speed.cpu_seconds
        figures[f"{prefix}first_seconds"] = speed.first_seconds
        for other in () if kind in kinds else kinds:
            label = prefix + ("" if other == "mergekit" else "in_memory_")
            found = speeds.get(other)
            figures[f"{label}speedup"] = found and found.seconds / speed.seconds
            figures[f"{label}cpu_speedup"] = found and found.cpu_seconds / speed.cpu_seconds
    return {f"{name}_{key}": value for key, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default="zoo,llama", help=f"of {', '.join(CASES)}")
    parser.add_argument("--dtypes", default="bfloat16,float32", help="of ours")
    parser.add_argument(
        "--candidates", type=int, default=8, help="timed; three times that of ours"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--in-memory", action="store_true", help="mergekit-evolve's other strategy"
    )
    parser.add_argument("--mergekit-python", help="times mergekit-evolve, with this interpreter")
    o = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if not o.mergekit_python:
        print("without --mergekit-python: ours alone, and no speedup")
    figures: dict[str, float | None] = {"threads": o.threads}
    for name in o.models.split(","):
        for key, value in measure(name, o).items():
            figures[key] = None if value is None else round(value, 3)
            print(f"{key} {figures[key]}", flush=True)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
