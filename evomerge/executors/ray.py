"""Ray executor: one worker actor per GPU, or per share of the CPU cores.

The driver owns every retry: actors neither restart nor retry by themselves, so a trial is told
exactly once and the driver knows how often it was tried. A worker that dies takes no trial with
it: the job goes to another one, until it has lost ``max_attempts`` of them.

A job is given only to a worker that is built. So a worker that cannot be built costs no trial an
attempt, a slow start is never taken for a hang, and a fast worker is not kept waiting by a slow
one. Workers join whenever they are built, those of nodes that join a running cluster included:
Ray keeps an actor that finds no room until there is some. Ctrl-C reaches the driver alone: Ray
blocks SIGINT in the processes that it starts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

from evomerge.errors import ConfigError, EvomergeError, StudyError
from evomerge.executors.base import Job
from evomerge.executors.division import divide, room
from evomerge.executors.lifeline import Lifeline
from evomerge.executors.notes import Notes, Repeater
from evomerge.executors.worker import Worker, WorkerSpec
from evomerge.trial import Trial, TrialState

_log = logging.getLogger(__name__)

CENSUS = 5.0
"""Seconds between two looks at which nodes a cluster has."""


class _Actor:
    """A Worker whose construction never raises: Ray would keep the message and lose the type."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._notes = Notes()
        logging.getLogger().addHandler(self._notes)
        self._error: Exception | None = None
        try:
            self._worker = Worker(spec)
        except Exception as e:  # noqa: BLE001 - raised again by ready()
            self._error = e

    def ready(self) -> tuple[None, list[dict[str, Any]]]:
        if self._error is not None:
            raise self._error
        return None, self._notes.take()

    def run(self, job: Job) -> tuple[Trial, list[dict[str, Any]]]:
        trial = self._worker.run(job)
        if trial.state is TrialState.FAILED and not self._worker.healthy():
            raise RuntimeError(trial.error)  # the device is lost, and not by this trial's fault
        return trial, self._notes.take()


@dataclasses.dataclass(eq=False)
class _Slot:
    """A worker: being built (``ref`` is its ready()), idle (no ``ref``), or running ``job``."""

    actor: Any
    ref: Any
    since: float  # when it began what ref stands for
    built: bool = False
    job: Job | None = None
    deaths: int = 0  # while being built, in a row


class RayExecutor:
    """Runs jobs on Ray actors.

    Args:
        spec: What every worker is built from.
        address: Address of a running cluster (``"auto"`` finds it); null starts Ray here.
        workers: How many; null: one per GPU share, or on CPUs one per ``cpus_per_worker``, and
            more as nodes join. On a running cluster a number may be more than fits now: the
            search starts with the first worker, the others join as nodes come.
        gpus_per_worker: Share of a GPU per worker (0.5 puts two on one), or several, over which
            its model is spread; null: 1 where the cluster has GPUs and ``device`` is not the CPU,
            else 0.
        cpus_per_worker: CPU cores per worker, which become its torch threads; null: all cores
            divided among the workers.
        share: How many studies divide the machine or cluster among themselves (a sweep); what is
            null above is then a share of it.
        max_attempts: How many workers a trial may lose before it is FAILED.
        trial_timeout: Seconds after which a trial's worker is killed as hung; null: never.
        start_timeout: Seconds to wait for a worker when there is none.
        paths: Where other nodes have what lies under a root here: ``{"/shared": "/mnt/shared"}``.
        stage: Folder on a node's own disk to which it copies the checkpoints, once for all its
            workers; null: they are mapped where they are.

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
        share: int = 1,
        max_attempts: int = 3,
        trial_timeout: float | None = None,
        start_timeout: float = 600.0,
        paths: Mapping[str, str] | None = None,
        stage: str | None = None,
    ) -> None:
        _at_least_1(workers=workers, cpus_per_worker=cpus_per_worker, share=share)
        _at_least_1(max_attempts=max_attempts)
        _positive(trial_timeout=trial_timeout, start_timeout=start_timeout)
        if spec.device.startswith("cuda:"):
            raise ConfigError(
                f"device={spec.device}: Ray gives every worker GPUs of its own. Use device=cuda "
                "(CUDA_VISIBLE_DEVICES chooses among GPUs, executor.gpus_per_worker says how many "
                "a worker gets), or executor=local."
            )
        self._max_attempts = max_attempts
        self._timeout, self._start_timeout = trial_timeout, start_timeout
        self._slots: list[_Slot] = []
        self._queue: deque[Job] = deque()
        self._finished: list[Trial] = []
        self._lost: Counter[tuple[int, str]] = Counter()  # workers, by trial
        self._repeater = Repeater()
        self._warm = False
        self._joined = False  # a worker was built since the last collect()
        self._given_up = 0
        self._ray, self._ours = start_ray(address)
        try:
            self._lifeline = Lifeline(self._ray)
            nodes = self._nodes()
            n, cpus, gpus = divide(
                nodes, spec.device, workers, cpus_per_worker, gpus_per_worker, share=share,
                nodes_may_join=address is not None,
            )  # fmt: skip
            self._each, self._share = (cpus, gpus), share
            self._grows = workers is None and address is not None
            self._counted = time.monotonic()
            if n > (fit := room(nodes, cpus, gpus)):
                _log.warning("room for %d of %d workers; others join as nodes come", fit, n)
            device = "cpu" if spec.device == "auto" and not gpus else spec.device
            if gpus > 1 and device != "cpu":
                device = "cuda:all"
            spec = dataclasses.replace(
                spec, threads=cpus, device=device, paths=dict(paths or {}), stage=stage
            )
            self._spec = self._ray.put(spec)
            self._actor = self._ray.remote(
                num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0
            )(_Actor)
            self._slots += [_Slot(*self._build()) for _ in range(n)]
        except BaseException:
            self.close()
            raise

    @property
    def capacity(self) -> int:
        """Workers that are built, at least 1; before :meth:`warm_up`, those that shall be."""
        return max(1, sum(s.built for s in self._slots)) if self._warm else len(self._slots)

    def _nodes(self) -> list[dict[str, float]]:
        return [n["Resources"] for n in self._ray.nodes() if n["Alive"]]

    def _build(self) -> tuple[Any, Any, float]:
        actor = self._actor.remote(self._spec)
        return actor, actor.ready.remote(), time.monotonic()

    def warm_up(self) -> None:
        """Waits for the first worker.

        Raises:
            StudyError: No worker could be built, or none in ``start_timeout`` seconds.
            EvomergeError: What building it raised, where that is one of evomerge's own errors.
        """
        while not any(s.built for s in self._slots):
            self._wait(1.0)
        self._warm, self._joined = True, False

    def submit(self, job: Job) -> None:
        """Queues a job and gives it to a free worker."""
        self._queue.append(job)
        self._assign()

    def collect(self, timeout: float | None = None) -> list[Trial]:
        """Blocks for finished trials; see :class:`~evomerge.executors.base.Executor`.

        Raises:
            StudyError: No worker is left and none can be built, or Ray itself is lost.
            EvomergeError: What building another worker raised.
        """
        end = math.inf if timeout is None else time.monotonic() + timeout
        while not (self._finished or self._joined) and (
            self._queue or any(s.job for s in self._slots)
        ):
            left = end - time.monotonic()
            self._wait(min(1.0, max(0.0, left)))
            if left <= 0:
                break
        finished, self._finished, self._joined = self._finished, [], False
        return finished

    def _wait(self, seconds: float) -> None:
        """Waits until something happens on a worker, and deals with all that has happened."""
        self._lifeline.check()
        try:
            self._attend(seconds)
        except EvomergeError:
            raise
        except Exception:  # as a broken pipe to the object store, where the raylet was killed
            self._lifeline.check(now=True)
            raise

    def _attend(self, seconds: float) -> None:
        refs = {s.ref: s for s in self._slots if s.ref is not None}
        self._ray.wait(list(refs), num_returns=1, timeout=seconds)
        done, _ = self._ray.wait(list(refs), num_returns=len(refs), timeout=0)
        for ref in done:
            slot = refs[ref]
            if slot.built:
                self._take(slot)
            else:
                self._welcome(slot)
        self._kill_hung()
        self._check_workers()
        self._grow()
        self._assign()

    def _assign(self) -> None:
        for slot in self._slots:
            if self._queue and slot.built and slot.job is None:
                slot.job = self._queue.popleft()
                slot.ref, slot.since = slot.actor.run.remote(slot.job), time.monotonic()

    def _get(self, ref: Any) -> Any:
        """A worker's answer; what it logged is repeated here."""
        answer, notes = self._ray.get(ref)
        self._repeater.repeat(notes)
        return answer

    def _welcome(self, slot: _Slot) -> None:
        """A worker is built, or cannot be: then it is tried again if it died, else given up."""
        try:
            self._get(slot.ref)
        except self._ray.exceptions.RayError as e:
            self._lifeline.check(now=True)
            cause = getattr(e, "cause", None)
            if isinstance(cause, EvomergeError):  # no other worker will fare better
                raise cause from e
            slot.deaths += 1
            if cause is None and slot.deaths < self._max_attempts:
                self._replace(slot)
                return
            self._slots.remove(slot)
            self._given_up += 1
            self._ray.kill(slot.actor)
            if not self._slots:
                raise StudyError(f"no worker could be started: {_reason(e)}") from e
            _log.warning(
                "a worker could not be started; going on with %d: %s", len(self._slots), _reason(e)
            )
        else:
            slot.built, slot.ref, slot.deaths = True, None, 0
            self._joined = True

    def _take(self, slot: _Slot) -> None:
        """A job is finished, or its worker is dead."""
        job = slot.job
        assert job is not None  # noqa: S101
        try:
            self._finished.append(self._get(slot.ref))
            slot.job = slot.ref = None
        except self._ray.exceptions.RayError as e:
            self._lifeline.check(now=True)  # to go on without Ray itself would end this process
            self._replace(slot)
            self._retry(job, f"its worker died: {_reason(e)}")

    def _retry(self, job: Job, reason: str) -> None:
        trial = job.trial
        self._lost[trial.number, trial.split] += 1
        lost = self._lost[trial.number, trial.split]
        if lost >= self._max_attempts:
            error = f"given up after {lost} attempt{'s' * (lost > 1)}; {reason}"
            self._finished.append(dataclasses.replace(trial, state=TrialState.FAILED, error=error))
            return
        _log.warning("%s is tried again: %s", trial.name, reason.splitlines()[0])
        again = dataclasses.replace(trial, attempt=trial.attempt + 1)
        self._queue.appendleft(dataclasses.replace(job, trial=again))

    def _replace(self, slot: _Slot) -> None:
        self._ray.kill(slot.actor)
        slot.actor, slot.ref, slot.since = self._build()
        slot.built, slot.job = False, None

    def _kill_hung(self) -> None:
        for slot in self._slots:
            spent = time.monotonic() - slot.since
            if self._timeout is not None and slot.job is not None and spent > self._timeout:
                job = slot.job
                self._replace(slot)
                self._retry(job, f"no answer after {spent:.0f} s (executor.trial_timeout)")

    def _grow(self) -> None:
        """Nodes that joined get workers, where how many there are is left to the cluster."""
        if not self._grows or time.monotonic() - self._counted < CENSUS:
            return
        self._counted = time.monotonic()
        if not self._lifeline.check(now=True):
            return
        fit = room(self._nodes(), *self._each) // self._share
        more = fit - len(self._slots) - self._given_up
        self._slots += [_Slot(*self._build()) for _ in range(more)]

    def _check_workers(self) -> None:
        """Waiting for workers that never come must end."""
        if any(s.built for s in self._slots):
            return
        self._lifeline.check_remembered()
        if time.monotonic() - max(s.since for s in self._slots) > self._start_timeout:
            raise StudyError(
                f"no worker was ready after {self._start_timeout:g} s; the cluster may be busy or "
                "have no node for one (see `ray status`), or nodes or loading the model take "
                "longer: raise executor.start_timeout."
            )

    def close(self) -> None:
        """Stops the workers, and Ray itself where this executor started it."""
        for slot in self._slots:
            with contextlib.suppress(Exception):  # a cluster that is gone has no workers either
                self._ray.kill(slot.actor)
        self._slots.clear()
        self._queue.clear()
        if self._ours:
            with contextlib.suppress(Exception):  # it prints: a full disk may be why we are here
                self._ray.shutdown()
            self._ours = False


def start_ray(address: str | None, *, log_to_driver: bool = False) -> tuple[Any, bool]:
    """Ray, and whether it was started or connected to here.

    Args:
        address: Of a running cluster (``"auto"`` finds one); None starts Ray on this machine.
        log_to_driver: Whether what tasks and actors print is printed here.

    Raises:
        ConfigError: No cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        return ray, False
    try:
        ray.init(
            address=address or "local",  # None would join any cluster that runs on this machine
            include_dashboard=None if address else False,
            log_to_driver=log_to_driver,
            logging_level=logging.ERROR,
        )
    except ConnectionError as e:
        raise ConfigError(
            f"executor.address={address}: no Ray cluster answers there ({e}). Start one with "
            "`ray start --head`, or leave the address out. A cluster that asks for a token "
            "(Ray's default where there is one) lets a driver in that was started with "
            "RAY_AUTH_MODE=token."
        ) from e
    return ray, True


def _at_least_1(**settings: int | None) -> None:
    for name, value in settings.items():
        if value is not None and value < 1:
            raise ConfigError(f"executor.{name}: expected at least 1, got {value}.")


def _positive(**settings: float | None) -> None:
    for name, value in settings.items():
        if value is not None and not value > 0:
            raise ConfigError(f"executor.{name}: expected seconds > 0, got {value}.")


def _reason(error: BaseException) -> str:
    """What happened, without the decoration of a Ray error."""
    cause = getattr(error, "cause", None)
    if cause is not None:
        return f"{type(cause).__name__}: {cause}"
    words = str(error).strip()
    if type(error).__name__ == "OutOfMemoryError":  # the rest lists the machine's processes
        words = words.splitlines()[0] + ". Lower executor.workers, or use larger machines."
    return words
