"""Sweeps through launchers: two real processes, killed in the middle, continued; and Ray's."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import yaml

from evomerge.cli import main
from evomerge.errors import RunFolderError
from evomerge.store import open_run
from tests.cli.conftest import write_config

SWEEP = ("search", "mine.yaml", "-m", "optimizer=cma_es,nsga2")
JOBS = {"cma_es", "nsga2"}
LAUNCHERS = {
    "joblib": ("hydra/launcher=joblib", "executor.threads=1"),
    "submitit": ("hydra/launcher=submitit_local", "executor.threads=1"),
    "ray": ("hydra/launcher=ray", "executor=ray", "executor.cpus_per_worker=1"),
}
PLUGINS = {"joblib": "hydra_joblib_launcher", "submitit": "hydra_submitit_launcher"}
PATIENCE = 300.0
ZOO = (
    "search", "-m", "optimizer=cma_es,nsga2", "n_trials=6", "n_finalists=2", "score_cache=false",
    "evaluator.splits={search: 20, select: 10, test: 10}",
)  # fmt: skip


def installed(launcher: str) -> bool:
    name = PLUGINS.get(launcher)
    with contextlib.suppress(ModuleNotFoundError):
        return name is None or importlib.util.find_spec(f"hydra_plugins.{name}") is not None
    return False


def start(project: Path, *arguments: str, sweep: Sequence[str] = SWEEP) -> subprocess.Popen:
    """A sweep in processes of its own, as a terminal would start it."""
    code = "import sys; from evomerge.cli import main; sys.exit(main())"
    out = (project / "log").open("ab")
    return subprocess.Popen(
        [sys.executable, "-c", code, *sweep, *arguments],
        cwd=project, stdout=out, stderr=out, start_new_session=True,
        env=os.environ | {"RAY_OVERRIDE_RESOURCES": '{"CPU": 2}'},  # two jobs, two cores
    )  # fmt: skip


def told(project: Path) -> dict[str, list]:
    """What each job has told so far; every folder belongs to one job."""
    found = {}
    for folder in sorted((project / "runs").glob("*/")):
        with contextlib.suppress(RunFolderError):
            run = open_run(folder)
            job = run.meta["optimizer"]
            assert job not in found, "two folders of one job"
            found[job] = [
                (t.number, t.split, t.recipe.id, dict(t.scores.values)) for t in run.trials
            ]
    return found


def kill(driver: subprocess.Popen) -> None:
    """Kills a driver and every process that it started."""
    family = [*psutil.Process(driver.pid).children(recursive=True), psutil.Process(driver.pid)]
    for process in reversed(family):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    driver.wait()
    psutil.wait_procs(family, timeout=20)


def undisturbed(folder: Path, sweep: Sequence[str]) -> dict[str, list]:
    """What a sweep tells, one job after the other in this process."""
    where = Path.cwd()
    os.chdir(folder)
    try:
        assert main(sweep) == 0
    finally:
        os.chdir(where)
    found = told(folder)
    assert set(found) == JOBS
    return found


@pytest.fixture(scope="module")
def whole(family, tmp_path_factory) -> dict[str, list]:
    from tests.cli.conftest import write_task

    folder = tmp_path_factory.mktemp("whole")
    write_task(folder / "tasks")
    write_config(folder, family, n_trials=6)
    return undisturbed(folder, SWEEP)


@pytest.fixture(scope="module")
def whole_zoo(tmp_path_factory) -> dict[str, list]:
    return undisturbed(
        tmp_path_factory.mktemp("zoo"), (*ZOO, "executor=local", "executor.threads=1")
    )


def killed_and_continued(
    project: Path, whole: dict[str, list], *arguments: str, sweep: Sequence[str] = SWEEP
) -> None:
    """Starts a sweep, kills all of it once 7 trials are told, and starts it again."""
    driver = start(project, *arguments, sweep=sweep)
    end = time.monotonic() + PATIENCE
    while sum(map(len, told(project).values())) < 7:
        assert driver.poll() is None, (project / "log").read_text()[-3000:]
        assert time.monotonic() < end
        time.sleep(0.05)
    kill(driver)
    before = told(project)
    n = sum(map(len, whole.values()))
    assert sum(map(len, before.values())) < n
    again = start(project, *arguments, sweep=sweep)
    assert again.wait(PATIENCE) == 0, (project / "log").read_text()[-3000:]
    after = told(project)
    assert set(after) == JOBS
    for job, trials in before.items():
        assert after[job][: len(trials)] == trials, "what was told is told first, in its order"
    assert after == whole
    print(f"killed after {sum(map(len, before.values()))} of {n} trials; continued to the same")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_sweep_killed_in_the_middle_continues(family, project, whole, launcher) -> None:
    if not installed(launcher):
        pytest.skip(f"hydra's {launcher} launcher is not installed: pip install evomerge[sweeps]")
    write_config(project, family, n_trials=6)
    killed_and_continued(project, whole, *LAUNCHERS[launcher])
    if launcher == "ray":
        for config in (project / "runs").glob("*/config.yaml"):
            assert yaml.safe_load(config.read_text())["executor"]["share"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "ray"])
def test_a_sweep_on_the_zoo_killed_in_the_middle_continues(tmp_path, whole_zoo, launcher) -> None:
    if not installed(launcher):
        pytest.skip(f"hydra's {launcher} launcher is not installed: pip install evomerge[sweeps]")
    local = ("executor=local",) if launcher == "joblib" else ()
    killed_and_continued(tmp_path, whole_zoo, *local, *LAUNCHERS[launcher], sweep=ZOO)


@pytest.mark.slow
@pytest.mark.parametrize("ignored", [False, True], ids=["terminal", "background"])
def test_ctrl_c_lets_the_jobs_on_ray_finish_what_runs(project, family, whole, ignored) -> None:
    """A script that starts it with & has it ignore Ctrl-C; ``kill -INT`` stops it all the same."""
    write_config(project, family, n_trials=20_000)  # more than could end before the signal arrives
    old = signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
    try:
        driver = start(project, *LAUNCHERS["ray"])
    finally:
        signal.signal(signal.SIGINT, old)
    end = time.monotonic() + PATIENCE
    while len(told(project)) < 2 or min(map(len, told(project).values())) < 2:
        assert driver.poll() is None, (project / "log").read_text()[-3000:]
        assert time.monotonic() < end
        time.sleep(0.05)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(PATIENCE) == 130, (project / "log").read_text()[-3000:]
    assert (project / "log").read_text().count("stopping: trials that run are finished first") == 2
    for folder in (project / "runs").glob("*/"):
        assert not open_run(folder).running


def test_a_launcher_that_is_not_installed(project, capsys) -> None:
    if installed("joblib"):
        pytest.skip("it is installed")
    assert main([*SWEEP, "hydra/launcher=joblib"]) == 2
    assert "pip install 'evomerge[sweeps]'" in capsys.readouterr().err


def test_an_unknown_launcher_and_a_bad_setting(project, capsys) -> None:
    assert main([*SWEEP, "hydra/launcher=rai"]) == 2
    assert "unknown hydra/launcher option 'rai'. Did you mean 'ray'" in capsys.readouterr().err
    assert main([*SWEEP, "hydra/launcher=ray", "hydra.launcher.at_once=0"]) == 2
    assert "hydra.launcher.at_once: expected at least 1" in capsys.readouterr().err
