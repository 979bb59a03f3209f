"""Workers that join and leave a search on a running cluster, as its nodes do."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from evomerge.errors import ConfigError
from evomerge.executors import ray as executors
from evomerge.executors.base import Job
from evomerge.executors.worker import WorkerSpec
from evomerge.trial import Trial
from tests.chaos.cluster import ChaosCluster
from tests.chaos.driver import SleepingActor
from tests.fakes import recipe

SPEC = WorkerSpec(pool=None, evaluator=None, device="cpu")


def trials() -> Iterator[Trial]:
    for i in range(10_000):
        yield Trial(i, "search", np.full(4, i / 1e4), recipe(i / 1e4))


def work_until(executor, source: Iterator[Trial], capacity: int) -> None:
    """Keeps every worker busy, as a study does, until there are so many."""
    pending: set[int] = set()
    end = time.monotonic() + 120
    while executor.capacity != capacity or pending:
        assert time.monotonic() < end, f"{executor.capacity} workers"
        while executor.capacity != capacity and len(pending) < executor.capacity:
            trial = next(source)
            pending.add(trial.number)
            executor.submit(Job(trial))
        for trial in executor.collect():
            assert trial.scores is not None
            pending.remove(trial.number)  # each comes back once


@pytest.mark.slow
@pytest.mark.parametrize("workers", [4, None])
def test_workers_join_and_leave_as_nodes_do(monkeypatch, workers) -> None:
    """Wished for by number, or as many as there is room for."""
    monkeypatch.setattr(executors, "_Actor", SleepingActor)
    monkeypatch.setattr(executors, "CENSUS", 0.5)
    cluster, source = ChaosCluster(nodes=0), trials()
    executor = None
    try:
        with pytest.raises(ConfigError, match="say how many"):
            executors.RayExecutor(SPEC, address=cluster.address, cpus_per_worker=1)
        executors.RayExecutor(SPEC, address=cluster.address, workers=4, cpus_per_worker=1).close()
        cluster.add_node()
        executor = executors.RayExecutor(
            SPEC, address=cluster.address, workers=workers, cpus_per_worker=1, max_attempts=20
        )
        assert executor.capacity == (workers or 2)
        executor.warm_up()
        assert executor.capacity in {1, 2}
        work_until(executor, source, 2)
        cluster.add_node()
        work_until(executor, source, 4)
        cluster.remove_node(0)
        work_until(executor, source, 2)
        cluster.add_node()
        work_until(executor, source, 4)
    finally:
        if executor is not None:
            executor.close()
        cluster.close()
