"""A machine runs out of memory: Ray's own monitor kills the worker that takes it."""

from __future__ import annotations

import time

import psutil
import pytest

from evomerge.executors import ray as executors
from evomerge.executors.base import Job
from evomerge.executors.worker import WorkerSpec
from evomerge.trial import Trial, TrialState
from tests.chaos.driver import SleepingActor
from tests.fakes import recipe

ROOM, MOST = 3e9, 8e9


class Eater(SleepingActor):
    """Trial 1 takes memory until it is killed, trial 2 only the first time."""

    def run(self, job):
        if job.trial.number == 1 or (job.trial.number == 2 and job.trial.attempt == 0):
            held = []
            while sum(map(len, held)) < MOST:
                held.append(bytearray(b"x") * 100_000_000)
                time.sleep(0.05)
        return super().run(job)


@pytest.mark.slow
@pytest.mark.skipif(psutil.virtual_memory().available < 14e9, reason="needs 14 GB of memory")
def test_a_trial_that_takes_all_memory_fails_alone_and_says_why(monkeypatch) -> None:
    memory = psutil.virtual_memory()
    limit = (memory.total - memory.available + ROOM) / memory.total
    monkeypatch.setenv("RAY_memory_usage_threshold", str(limit))
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    monkeypatch.setattr(executors, "_Actor", Eater)
    spec = WorkerSpec(pool=None, evaluator=None, device="cpu")
    executor = executors.RayExecutor(spec, workers=1, cpus_per_worker=1, max_attempts=3)
    found: dict[int, Trial] = {}
    try:
        executor.warm_up()
        for i in range(4):
            executor.submit(Job(Trial(i, "search", None, recipe(i / 4))))
        while len(found) < 4:
            found |= {t.number: t for t in executor.collect()}
    finally:
        executor.close()
    assert [t.state is TrialState.COMPLETE for _, t in sorted(found.items())] == [1, 0, 1, 1]
    assert found[2].attempt == 1
    assert "given up after 3 attempts; its worker died" in found[1].error
    assert "running low on memory" in found[1].error
    assert found[1].error.count("\n") == 0
