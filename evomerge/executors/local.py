"""The simplest executor: one worker in this process, one job at a time."""

from __future__ import annotations

import dataclasses
from collections import deque

from evomerge.errors import ConfigError
from evomerge.executors.base import Job
from evomerge.executors.worker import Worker, WorkerSpec
from evomerge.trial import Trial


class LocalExecutor:
    """Runs jobs in this process.

    Args:
        spec: What the worker is built from.
        threads: torch threads; null leaves torch's own choice.

    Raises:
        ConfigError: ``threads`` below 1.
    """

    capacity = 1

    def __init__(self, spec: WorkerSpec, *, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise ConfigError(f"executor.threads: expected at least 1, got {threads}.")
        self._spec = dataclasses.replace(spec, threads=threads)
        self._worker: Worker | None = None
        self._queue: deque[Job] = deque()

    def warm_up(self) -> None:
        """Builds the worker; raises what building it raises."""
        if self._worker is None:
            self._worker = Worker(self._spec)

    def submit(self, job: Job) -> None:
        """Queues a job."""
        self._queue.append(job)

    def collect(self, timeout: float | None = None) -> list[Trial]:  # noqa: ARG002
        """Runs the oldest job; [] when there is none."""
        if not self._queue:
            return []
        self.warm_up()
        assert self._worker is not None  # noqa: S101
        return [self._worker.run(self._queue.popleft())]

    def close(self) -> None:
        """Drops what is queued, and the live model."""
        self._queue.clear()
        self._worker = None
