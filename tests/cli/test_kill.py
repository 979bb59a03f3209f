"""``evomerge search`` in a process of its own, killed or interrupted, then started again."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from evomerge.errors import RunFolderError
from evomerge.store import JOURNAL, open_run
from evomerge.trial import Trial
from tests.cli.conftest import write_config, write_task

RUN = "run"
PATIENCE = 120.0
# Processes are forked from one that has imported everything: a sitting starts in a second.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["torch", "transformers", "lm_eval", "optuna", "cma", "evomerge.cli.compose", "evomerge.study",
     "evomerge.executors.local", "evomerge.report.page", "evomerge.evaluators.lm_eval"]
)  # fmt: skip


def _search(project: Path, log: Path) -> None:
    with log.open("ab") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    os.chdir(project)
    from evomerge.cli import main

    sys.exit(main(["search", "mine.yaml", f"run_dir={RUN}", "executor.threads=1"]))


def sit(project: Path) -> multiprocessing.process.BaseProcess:
    """Starts the search; the same command every time."""
    process = FORKS.Process(target=_search, args=(project, project / "log"))
    process.start()
    return process


def finish(process: multiprocessing.process.BaseProcess) -> int:
    """Waits for a sitting to end by itself; its exit code."""
    process.join(PATIENCE)
    if process.is_alive():
        process.kill()
        pytest.fail("a sitting did not end")
    return process.exitcode


def wait_for(process: multiprocessing.process.BaseProcess, moment: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not moment():
        assert process.is_alive(), "the sitting ended before the moment came"
        assert time.monotonic() < end
        time.sleep(0.002)


def scored(project: Path, split: str = "search") -> int:
    return len(list((project / RUN / "scores").glob(f"*-{split}.npz")))


def told(project: Path) -> list[Trial]:
    try:
        return list(open_run(project / RUN).trials)
    except RunFolderError:  # nothing was recorded yet
        return []


def key(t: Trial) -> tuple:
    scores = t.scores
    each = {k: v.tobytes() for k, v in scores.per_example.items() if v is not None}
    return (t.number, t.kind, t.split, t.recipe.id, dict(scores.values), dict(scores.stderr), each)


def stamps(project: Path, trials: list[Trial]) -> dict[str, int]:
    """When the scores of trials were written, in nanoseconds."""
    names = [f"{t.number:05d}-{t.split}.npz" for t in trials if t.copied_from is None]
    return {n: (project / RUN / "scores" / n).stat().st_mtime_ns for n in names}


def make_project(folder: Path, family: dict[str, Path]) -> Path:
    folder.mkdir(exist_ok=True)
    write_task(folder / "tasks", n=200)
    splits = {"search": 40, "select": 40, "test": 40}
    write_config(
        folder, family, n_trials=24,
        evaluator={"include_path": str(folder / "tasks"), "splits": splits},
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def whole(family, tmp_path_factory) -> list[tuple]:
    """The trials of a search that nothing disturbed."""
    project = make_project(tmp_path_factory.mktemp("whole"), family)
    assert finish(sit(project)) == 0, (project / "log").read_text()
    return list(map(key, told(project)))


def test_killed_again_and_again_it_ends_as_if_it_never_was(family, tmp_path, whole) -> None:
    """kill -9 at start-up, in the search (at random moments) and in both finals."""
    project = make_project(tmp_path, family)
    rng = random.Random(0)
    journal = project / RUN / JOURNAL
    at = sorted(rng.sample(range(1, 28), 3))
    moments: list[Callable[[], object]] = [
        lambda: (project / "log").exists() and "run folder" in (project / "log").read_text(),
        lambda: journal.exists() and journal.stat().st_size,
        *((lambda n=n: scored(project) >= n) for n in at),
        lambda: scored(project, "select") >= 2,
        lambda: scored(project, "test"),
        (project / RUN / "report.html").exists,
    ]
    seen: list[tuple] = []
    written: dict[str, int] = {}
    for i, moment in enumerate(moments):
        process = sit(project)
        wait_for(process, moment)
        if i > 1:
            time.sleep(rng.uniform(0, 0.06))  # about one trial
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        trials = told(project)
        now = list(map(key, trials))
        assert now[: len(seen)] == seen, "what was told is told again, first and in its order"
        after = stamps(project, trials)
        assert {n: after[n] for n in written} == written, "a finished trial was scored again"
        seen, written = now, after
    assert finish(sit(project)) == 0, (project / "log").read_text()[-2000:]
    trials = told(project)
    assert list(map(key, trials)) == whole
    after = stamps(project, trials)
    assert {n: after[n] for n in written} == written
    assert not open_run(project / RUN).running
    assert sum(t.attempt for t in trials) <= len(moments)
    for name in ("report.html", "front.png", "config.yaml"):
        assert (project / RUN / name).stat().st_size


def test_ctrl_c_once_finishes_what_runs_twice_stops_now(family, tmp_path, whole) -> None:
    project = make_project(tmp_path, family)
    log = project / "log"
    process = sit(project)
    wait_for(process, lambda: scored(project) >= 8)
    os.kill(process.pid, signal.SIGINT)
    assert finish(process) == 130
    text = log.read_text()
    assert "stopping: trials that run are finished first" in text
    assert "stopped early; the same command with n_trials=" in text
    assert "Traceback" not in text
    run = open_run(project / RUN)
    assert 8 <= len(run.trials) < len(whole)
    assert not run.running

    process = sit(project)
    n = scored(project)
    wait_for(process, lambda: scored(project) >= n + 3)
    os.kill(process.pid, signal.SIGINT)
    with contextlib.suppress(ProcessLookupError):
        time.sleep(0.01)
        os.kill(process.pid, signal.SIGINT)
    assert finish(process) == 130
    assert "continues" in log.read_text().splitlines()[-1]
    assert "Traceback" not in log.read_text()

    assert finish(sit(project)) == 0
    assert list(map(key, told(project))) == whole
    assert sum(t.attempt for t in told(project)) <= 1


@pytest.mark.slow
def test_killed_on_ray(family, tmp_path, whole) -> None:
    """One Ray worker: kill -9 of the driver leaves no process, and the same trials in the end."""
    project = make_project(tmp_path, family)
    command = [
        str(Path(sys.executable).parent / "evomerge"), "search", "mine.yaml", f"run_dir={RUN}",
        "executor=ray", "executor.workers=1", "executor.cpus_per_worker=1",
    ]  # fmt: skip

    def start() -> subprocess.Popen:
        out = (project / "log").open("ab")
        return subprocess.Popen(command, cwd=project, stdout=out, stderr=out)

    written: dict[str, int] = {}
    for split, n in (("search", 7), ("search", 15), ("select", 2)):
        driver = start()
        end = time.monotonic() + PATIENCE
        while scored(project, split) < n:
            assert driver.poll() is None, (project / "log").read_text()[-2000:]
            assert time.monotonic() < end
            time.sleep(0.002)
        children = psutil.Process(driver.pid).children(recursive=True)
        # Ray's own agents take a minute to notice; what holds models must go at once
        agents = [p for p in children if "Agent" in p.name()]
        workers = [p for p in children if p not in agents]
        assert any(p.name().startswith("ray::") for p in workers)
        driver.kill()
        driver.wait()
        _, alive = psutil.wait_procs(workers, timeout=30)
        left = [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
        for p in (*left, *agents):
            with contextlib.suppress(psutil.NoSuchProcess):
                p.kill()
        assert not left
        after = stamps(project, told(project))
        assert {name: after[name] for name in written} == written
        written = after
    assert start().wait(PATIENCE) == 0, (project / "log").read_text()[-2000:]
    trials = told(project)
    assert list(map(key, trials)) == whole  # the local executor's scores, bit for bit
    assert {name: stamps(project, trials)[name] for name in written} == written
    assert re.search(r"is run again \(attempt 2\)", (project / "log").read_text())
