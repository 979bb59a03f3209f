"""Ray executor: one worker actor per GPU, or per share of the CPU cores.

The driver owns every retry: actors neither restart nor retry by themselves, so a trial is told
exactly once and the driver knows how often it was tried. A worker that dies takes no trial with
it: the job goes to another one, up to ``max_attempts`` times.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections import deque
from typing import Any

from evomerge.errors import ConfigError, StudyError
from evomerge.executors.base import Job
from evomerge.executors.worker import Worker, WorkerSpec
from evomerge.trial import Trial, TrialState

_log = logging.getLogger(__name__)


class _Actor:
    """A Worker whose construction never raises: Ray would keep the message and lose the type."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._error: Exception | None = None
        try:
            self._worker = Worker(spec)
        except Exception as e:  # noqa: BLE001 - raised again by ready()
            self._error = e

    def ready(self) -> bool:
        if self._error is not None:
            raise self._error
        return True

    def run(self, job: Job) -> Trial:
        if self._error is not None:
            raise self._error
        return self._worker.run(job)


@dataclasses.dataclass(eq=False)
class _Slot:
    actor: Any
    ready: Any  # object ref of ready(); None once the worker has answered
    job: Job | None = None
    ref: Any = None
    since: float = 0.0


class RayExecutor:
    """Runs jobs on Ray actors.

    Args:
        spec: What every worker is built from.
        address: Address of a running cluster (``"auto"`` finds it); null starts Ray here.
        workers: How many; null: one per GPU share, or on CPUs one per ``cpus_per_worker``.
        gpus_per_worker: Share of a GPU per worker (0.5 puts two on one); null: 1 where the
            cluster has GPUs, else 0.
        cpus_per_worker: CPU cores per worker, which become its torch threads; null: all cores
            divided among the workers.
        max_attempts: How often a trial may lose its worker before it is FAILED.
        trial_timeout: Seconds after which a trial's worker is killed as hung; null: never.
        start_timeout: Seconds to wait for the first worker.

    Raises:
        ConfigError: Settings out of range, or resources that the cluster does not have.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        address: str | None = None,
        workers: int | None = None,
        gpus_per_worker: float | None = None,
        cpus_per_worker: int | None = None,
        max_attempts: int = 3,
        trial_timeout: float | None = None,
        start_timeout: float = 600.0,
    ) -> None:
        for name, value in (
            ("workers", workers),
            ("cpus_per_worker", cpus_per_worker),
            ("max_attempts", max_attempts),
        ):
            if value is not None and value < 1:
                raise ConfigError(f"executor.{name}: expected at least 1, got {value}.")
        self._ray = _start_ray(address)
        self._max_attempts = max_attempts
        self._timeout = trial_timeout
        self._start_timeout = start_timeout
        resources = self._ray.cluster_resources()
        gpus, cpus = resources.get("GPU", 0.0), int(resources.get("CPU", 1))
        if gpus_per_worker is None:
            gpus_per_worker = 1.0 if gpus else 0.0
        if gpus_per_worker > gpus:
            raise ConfigError(
                f"executor.gpus_per_worker={gpus_per_worker:g}: the cluster has {gpus:g} GPU(s)."
            )
        if workers is None:
            workers = (
                int(gpus / gpus_per_worker)
                if gpus_per_worker
                else max(1, cpus // (cpus_per_worker or 1))
            )
        if cpus_per_worker is None:
            cpus_per_worker = max(1, cpus // workers)
        if workers * cpus_per_worker > cpus:
            raise ConfigError(
                f"{workers} workers with {cpus_per_worker} CPU core(s) each need "
                f"{workers * cpus_per_worker} cores, the cluster has {cpus}; lower "
                "executor.workers or executor.cpus_per_worker."
            )
        self.capacity = workers
        self._spec = self._ray.put(dataclasses.replace(spec, threads=cpus_per_worker))
        self._actor = self._ray.remote(
            num_cpus=cpus_per_worker,
            num_gpus=gpus_per_worker,
            max_restarts=0,
            max_task_retries=0,
        )(_Actor)
        self._slots = [self._new_slot() for _ in range(workers)]
        self._queue: deque[Job] = deque()
        self._finished: list[Trial] = []

    def _new_slot(self) -> _Slot:
        actor = self._actor.remote(self._spec)
        return _Slot(actor, actor.ready.remote())

    def warm_up(self) -> None:
        """Waits for the first worker.

        Raises:
            StudyError: The worker could not be built, or not in ``start_timeout`` seconds.
            EvomergeError: What building it raised, where that is one of evomerge's own errors.
        """
        refs = [s.ready for s in self._slots if s.ready is not None]
        if len(refs) < len(self._slots):
            return
        done, _ = self._ray.wait(refs, timeout=self._start_timeout)
        if not done:
            raise StudyError(
                f"no worker was ready after {self._start_timeout:g} s; the cluster may lack the "
                "resources asked for (see `ray status`)."
            )
        try:
            self._ray.get(done[0])
        except Exception as e:
            raise _cause(e) or StudyError(f"a worker could not be started: {e}") from e

    def submit(self, job: Job) -> None:
        """Queues a job and gives it to a free worker."""
        self._queue.append(job)
        self._assign()

    def _assign(self) -> None:
        free = [s for s in self._slots if s.job is None]
        free.sort(key=lambda s: s.ready is not None)  # those that are built already come first
        for slot in free:
            if not self._queue:
                return
            slot.job = self._queue.popleft()
            slot.ref = slot.actor.run.remote(slot.job)
            slot.since = time.monotonic()

    def collect(self, timeout: float | None = None) -> list[Trial]:
        """Blocks for finished trials; see :class:`~evomerge.executors.base.Executor`."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            if self._finished:
                finished, self._finished = self._finished, []
                return finished
            busy = {s.ref: s for s in self._slots if s.job is not None}
            if not busy:
                return []
            wait = 1.0 if end is None else max(0.0, min(1.0, end - time.monotonic()))
            done, _ = self._ray.wait(list(busy), num_returns=len(busy), timeout=0)
            if not done:
                done, _ = self._ray.wait(list(busy), num_returns=1, timeout=wait)
            for ref in done:
                self._take(busy[ref])
            self._kill_hung()
            self._assign()
            if not self._finished and end is not None and time.monotonic() >= end:
                return []

    def _take(self, slot: _Slot) -> None:
        job, slot.job = slot.job, None
        if job is None:
            return
        try:
            self._finished.append(self._ray.get(slot.ref))
            slot.ready = None
        except self._ray.exceptions.RayError as e:
            cause = _cause(e)
            if cause is not None:  # the worker could not be built: no other one will be
                raise cause from e
            self._replace(slot)
            self._retry(job, f"its worker died: {e}")

    def _retry(self, job: Job, reason: str) -> None:
        trial = dataclasses.replace(job.trial, attempt=job.trial.attempt + 1)
        if trial.attempt >= self._max_attempts:
            self._finished.append(
                dataclasses.replace(
                    trial,
                    state=TrialState.FAILED,
                    error=f"given up after {trial.attempt} attempts; {reason}",
                )
            )
            return
        _log.warning("%s is tried again: %s", trial.name, reason.splitlines()[0])
        self._queue.appendleft(Job(trial))

    def _replace(self, slot: _Slot) -> None:
        self._ray.kill(slot.actor)
        fresh = self._new_slot()
        slot.actor, slot.ready, slot.ref = fresh.actor, fresh.ready, None

    def _kill_hung(self) -> None:
        if self._timeout is None:
            return
        for slot in self._slots:
            if slot.job is not None and slot.ready is None:
                spent = time.monotonic() - slot.since
                if spent > self._timeout:
                    job, slot.job = slot.job, None
                    self._replace(slot)
                    self._retry(job, f"no answer after {spent:.0f} s")

    def close(self) -> None:
        """Stops the workers, and Ray itself where this executor started it."""
        for slot in self._slots:
            self._ray.kill(slot.actor)
        self._slots.clear()
        self._queue.clear()
        self._ray.shutdown()


def _start_ray(address: str | None) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if not ray.is_initialized():
        ray.init(
            address=address,
            include_dashboard=False if address is None else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    return ray


def _cause(error: BaseException) -> BaseException | None:
    """The evomerge error inside a Ray error, if there is one."""
    from evomerge.errors import EvomergeError

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, EvomergeError):
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return None
