"""The Ray executor on a real local Ray with real workers, some of which die."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from evomerge.errors import ConfigError, StudyError, TaskError
from evomerge.executors import ray as executors
from evomerge.executors.base import Job
from evomerge.executors.local import LocalExecutor
from evomerge.executors.notes import WORKERS
from evomerge.executors.ray import RayExecutor
from evomerge.executors.worker import WorkerSpec
from evomerge.trial import Trial, TrialState
from tests.chaos.driver import SleepingActor
from tests.executors.probe import Probe

DEEDS = {
    1: "raise", 6: "exit", 8: "once-exit", 13: "hang", 16: "warn", 17: "warn", 20: "slow",
    21: "once-hang",
}  # fmt: skip


@pytest.fixture(scope="module")
def ray():
    """A Ray of this module with four logical cores; it belongs to no executor."""
    import ray

    ray.init(
        address="local", num_cpus=4, include_dashboard=False, log_to_driver=False,
        logging_level="ERROR",
    )  # fmt: skip
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("probe")


@pytest.fixture(scope="module")
def executor(ray, pool, trials, folder):
    """Two workers that the tests below share; a worker that is killed is replaced."""
    deeds = {trials[i].recipe.id: deed for i, deed in DEEDS.items()}
    built = RayExecutor(
        WorkerSpec(pool, Probe(folder, deeds)), workers=2, cpus_per_worker=1, max_attempts=2
    )
    built.warm_up()
    yield built
    built.close()


def run(executor, trials: Sequence[Trial], in_flight: Sequence[Trial] = ()) -> dict[int, Trial]:
    """Submits trials and collects until nothing is in flight; each must come back once."""
    for trial in trials:
        executor.submit(Job(trial))
    found: dict[int, Trial] = {}
    expected = {t.number for t in (*trials, *in_flight)}
    while len(found) < len(expected):
        for trial in executor.collect():
            assert trial.number not in found, "told twice"
            assert trial.finished
            found[trial.number] = trial
    assert set(found) == expected
    assert executor.collect(timeout=0) == []
    return found


def attempts(folder: Path, trial: Trial) -> list[int]:
    """Process ids of the workers that began on a trial."""
    file = folder / trial.recipe.id
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def started(executor, folder: Path, trial: Trial) -> int:
    """Waits until a worker is in the middle of a trial; its process id."""
    end = time.monotonic() + 60
    while not attempts(folder, trial):
        assert time.monotonic() < end
        assert executor.collect(timeout=0.05) == []  # its worker may still be being built
    return attempts(folder, trial)[-1]


def complete(found: dict[int, Trial]) -> list[int]:
    return sorted(n for n, t in found.items() if t.state is TrialState.COMPLETE)


def test_equals_the_local_executor(executor, pool, trials, tmp_path) -> None:
    some = [trials[i] for i in (0, 2, 3, 4, 5)]
    found = run(executor, some)
    assert executor.collect() == []
    local = LocalExecutor(WorkerSpec(pool, Probe(tmp_path)), threads=1)
    for trial in some:
        local.submit(Job(trial))
        one, other = local.collect()[0].scores, found[trial.number].scores
        assert one.values["loss"] == other.values["loss"]
        assert one.per_example["loss"].tobytes() == other.per_example["loss"].tobytes()


def test_an_exception_is_a_traceback_and_the_worker_survives(executor, trials, folder) -> None:
    found = run(executor, [trials[i] for i in (0, 1, 2, 3)])
    assert complete(found) == [0, 2, 3]
    assert "Traceback" in found[1].error
    assert "seven is not eight" in found[1].error
    assert found[1].attempt == 0
    n_prepared = len((folder / "prepared").read_text().split())
    assert n_prepared <= 2, "a worker was built anew"


def test_a_recipe_that_kills_its_workers_fails_alone(executor, trials, folder) -> None:
    found = run(executor, [trials[i] for i in (5, 6, 7, 9)])
    assert complete(found) == [5, 7, 9]
    assert found[6].state is TrialState.FAILED
    assert "given up after 2 attempts; its worker died" in found[6].error
    assert len(attempts(folder, trials[6])) == 2
    assert all(found[i].attempt == 0 for i in (5, 7, 9))


def test_a_killed_worker_loses_no_trial(executor, trials, folder) -> None:
    executor.submit(Job(trials[21]))  # hangs at its first attempt
    victim = started(executor, folder, trials[21])
    os.kill(victim, signal.SIGKILL)
    found = run(executor, trials[22:25], in_flight=[trials[21]])
    assert complete(found) == [21, 22, 23, 24]
    assert found[21].attempt == 1
    first, second = attempts(folder, trials[21])
    assert first == victim != second
    assert all(len(attempts(folder, trials[i])) == 1 for i in (22, 23, 24))


def test_a_hanging_trial_is_killed_and_tried_again(executor, trials, folder, monkeypatch) -> None:
    monkeypatch.setattr(executor, "_timeout", 3.0)
    found = run(executor, [trials[i] for i in (10, 13, 11, 12)])
    assert complete(found) == [10, 11, 12]
    assert "given up after 2 attempts; no answer after" in found[13].error
    assert len(attempts(folder, trials[13])) == 2


def test_what_a_worker_warns_of_is_said_once(executor, trials, caplog) -> None:
    run(executor, [trials[16], trials[17]])
    # Another test may have left workers.jsonl's handler, which gets all of it: not what is meant.
    said = [r.getMessage() for r in caplog.records if r.name == "evomerge.executors.notes"]
    assert said == ["3 requests lose their beginning"]


def test_what_a_worker_did_reaches_the_driver_as_plain_data(executor, trials) -> None:
    events: list[dict] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            events.append({"level": record.levelname, **record.event})

    handler, level = Kept(), WORKERS.level
    WORKERS.addHandler(handler)
    WORKERS.setLevel("INFO")
    try:
        found = run(executor, [trials[i] for i in (1, 2, 16)])
    finally:
        WORKERS.removeHandler(handler)
        WORKERS.setLevel(level)
    jobs = {e["trial"]: e for e in events if "trial" in e}
    assert set(jobs) == {1, 2, 16}
    assert jobs[1]["state"] == "FAILED"
    assert jobs[2]["seconds"] == found[2].scores.seconds
    assert jobs[2]["process"] == found[2].scores.values["pid"] != os.getpid()
    warned = [e for e in events if e["level"] == "WARNING"]
    assert jobs[16]["process"] in {e["process"] for e in warned}


def test_collect_gives_up_waiting_and_loses_nothing(executor, trials) -> None:
    assert executor.collect() == []
    executor.submit(Job(trials[20]))
    assert executor.collect(timeout=0.2) == []
    assert executor.collect(timeout=0) == []
    assert [t.number for t in executor.collect()] == [20]


def test_a_lost_driver_leaves_its_room_to_others(ray, executor) -> None:
    """Its workers were its own: in a sweep launched on Ray, other searches go on with the room."""
    lost = ray.remote(num_cpus=0)(Owner).remote()
    pid = ray.get(lost.begin.remote())
    wait_for_cores(ray, 0)  # two of the four are the executor's
    os.kill(pid, signal.SIGKILL)
    wait_for_cores(ray, 2)


def wait_for_cores(ray, free: int) -> None:
    end = time.monotonic() + 60
    while (found := ray.available_resources().get("CPU", 0)) != free:
        assert time.monotonic() < end, found
        time.sleep(0.1)


class Owner:
    """A driver that is a Ray actor itself."""

    def begin(self) -> int:
        executors._Actor = SleepingActor
        self.executor = RayExecutor(
            WorkerSpec(pool=None, evaluator=None, device="cpu"), workers=2, cpus_per_worker=1
        )
        while self.executor.capacity < 2:
            self.executor.warm_up()
            self.executor._wait(0.1)
        return os.getpid()


@pytest.mark.slow
def test_attempts_of_earlier_sittings_do_not_count(executor, trials) -> None:
    """A trial that was RUNNING when its driver was killed five times may still lose a worker."""
    found = run(executor, [dataclasses.replace(trials[8], attempt=5)])
    assert complete(found) == [8]
    assert found[8].attempt == 6


def test_a_slow_start_is_no_hang_and_threads_are_the_cores(ray, pool, trials, tmp_path) -> None:
    """prepare() takes longer than trial_timeout; jobs wait for the worker outside the clock."""
    spec = WorkerSpec(pool, Probe(tmp_path, prepare="slow"))
    executor = RayExecutor(spec, workers=1, cpus_per_worker=2, trial_timeout=2.5, max_attempts=1)
    try:
        (trial,) = run(executor, trials[:1]).values()
        assert trial.state is TrialState.COMPLETE, trial.error
        assert trial.scores.values["threads"] == 2
        pid = int(trial.scores.values["pid"])
    finally:
        executor.close()
    assert ray.is_initialized()  # it was not this executor that started it
    for _ in range(100):
        if not psutil.pid_exists(pid):
            break
        time.sleep(0.1)
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("error", TaskError, "^no such documents$"),
        ("crash", StudyError, "no worker could be started: RuntimeError: no memory left"),
        pytest.param(
            "exit", StudyError, "no worker could be started: .*died", marks=pytest.mark.slow
        ),
    ],
)
def test_a_worker_that_cannot_be_built(ray, pool, tmp_path, how, error, words) -> None:
    spec = WorkerSpec(pool, Probe(tmp_path, prepare=how))
    executor = RayExecutor(spec, workers=1, max_attempts=2, cpus_per_worker=1)
    try:
        with pytest.raises(error, match=f"(?s){words}") as caught:
            executor.warm_up()
        assert type(caught.value) is error
    finally:
        executor.close()
    tries = len((tmp_path / "prepared").read_text().split())
    assert tries == (2 if how == "exit" else 1)


@pytest.mark.slow
def test_a_second_worker_that_cannot_be_built_is_given_up(ray, pool, trials, tmp_path) -> None:
    """As when two live models do not fit on one GPU: it costs no trial an attempt."""
    spec = WorkerSpec(pool, Probe(tmp_path, prepare="second"))
    executor = RayExecutor(spec, workers=2, cpus_per_worker=1, max_attempts=1)
    try:
        found = run(executor, trials[:6])
        assert complete(found) == list(range(6))
        end = time.monotonic() + 60
        while executor.capacity == 2 and time.monotonic() < end:
            run(executor, trials[6:7])
        assert executor.capacity == 1
    finally:
        executor.close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"workers": 0}, "executor.workers: expected at least 1, got 0"),
        ({"max_attempts": 0}, "executor.max_attempts"),
        ({"trial_timeout": 0}, "executor.trial_timeout: expected seconds > 0, got 0"),
        ({"start_timeout": -1}, "executor.start_timeout"),
        ({"gpus_per_worker": 1}, r"do not fit: the cluster has 4 core\(s\) and 0 GPU\(s\)"),
        ({"gpus_per_worker": -1}, "executor.gpus_per_worker"),
        ({"gpus_per_worker": 1.5}, "a share in"),
        ({"workers": 5}, "do not fit"),
        ({"cpus_per_worker": 5}, "do not fit"),
        ({"workers": 2, "cpus_per_worker": 3}, "room for 1"),
    ],
)
def test_settings_that_cannot_be(ray, pool, tmp_path, settings, words) -> None:
    with pytest.raises(ConfigError, match=words):
        RayExecutor(WorkerSpec(pool, Probe(tmp_path)), **settings)


def test_devices_that_ray_cannot_give(ray, pool, tmp_path) -> None:
    for device, words in (("cuda:1", "device=cuda"), ("cuda", "0 GPU")):
        with pytest.raises(ConfigError, match=words):
            RayExecutor(WorkerSpec(pool, Probe(tmp_path), device=device))


DRIVER = """
import os, signal, sys
from pathlib import Path
from evomerge.executors.base import Job
from evomerge.executors.ray import RayExecutor
from evomerge.executors.worker import WorkerSpec
from evomerge.experts import ExpertPool
from evomerge.space import SearchSpace, load_space
from evomerge.trial import Trial
from tests.executors.probe import Probe

base, a, b, folder = sys.argv[1:]
pool = ExpertPool.open(base, {"a": a, "b": b})
space = SearchSpace(load_space("global"), pool)
trials = [Trial(i, "search", x, space.decode(x)) for i, x in enumerate(([0.1, 0.2], [0.3, 0.4]))]
deeds = {t.recipe.id: "slow" for t in trials}
executor = RayExecutor(WorkerSpec(pool, Probe(Path(folder), deeds)), workers=1)
executor.warm_up()
signal.signal(signal.SIGINT, lambda *_: print("stopping", flush=True))
executor.submit(Job(trials[0]))
executor.submit(Job(trials[1]))
print("ready", flush=True)
for _ in trials:
    (trial,) = executor.collect()
    pid = int(trial.scores.values["pid"])
    print(trial.number, trial.state.value, trial.attempt, pid, flush=True)
executor.close()
print("closed", flush=True)
sys.stdin.read()
"""


def test_ctrl_c_leaves_the_workers_alone_and_close_leaves_none(family, tmp_path) -> None:
    """SIGINT to the whole process group, as a terminal sends it; Ray is started in there."""
    folders = [str(family[n]) for n in ("base", "expert_a", "expert_b")]
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, *folders, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    try:
        assert driver.stdout.readline() == "ready\n"
        everyone = psutil.Process(driver.pid).children(recursive=True)
        time.sleep(0.5)  # in the middle of the first trial
        os.killpg(driver.pid, signal.SIGINT)
        for p in everyone:  # a worker has a process group of its own; be harsher than a terminal
            if p.name().startswith("ray::"):
                p.send_signal(signal.SIGINT)
        lines = [driver.stdout.readline().split() for _ in range(4)]
        assert lines[0] == ["stopping"]
        assert [line[:3] for line in lines[1:3]] == [
            ["0", "COMPLETE", "0"],
            ["1", "COMPLETE", "0"],
        ]
        assert lines[1][3] == lines[2][3]  # the same worker throughout
        assert lines[3] == ["closed"]
        _, alive = psutil.wait_procs(everyone, timeout=20)
        assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]
    finally:
        driver.kill()
        driver.communicate()
