"""A driver to kill: the real study, store and Ray executor; only the evaluation is simulated.

Ray's workers import this file, so it imports little; ``torch`` alone would take them seconds.
"""

from __future__ import annotations

import dataclasses
import os
import random
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

from evomerge.errors import RunFolderError, StudyError
from evomerge.executors import ray as executors
from evomerge.executors.worker import WorkerSpec
from evomerge.trial import Trial, TrialState
from tests.fakes import scores_of

N_TRIALS = 24
FULL, LOST = 3, 4
"""Exit codes: the disk is full; Ray itself is lost."""


class SleepingWorker:
    """Takes its time over a trial, then scores a function of the recipe."""

    def run(self, job) -> Trial:
        time.sleep(random.uniform(0.01, 0.2))
        scores = scores_of(job.trial.recipe, job.trial.split)
        return dataclasses.replace(job.trial, state=TrialState.COMPLETE, scores=scores)

    def healthy(self) -> bool:
        return True


class Heavy(list):
    """Notes that travel through the object store, as the scores of 10,000 documents do."""

    def __init__(self) -> None:
        self.ballast = bytes(1_000_000)


class SleepingActor(executors._Actor):
    def __init__(self, spec) -> None:
        self._notes, self._error, self._worker = executors.Notes(), None, SleepingWorker()

    def run(self, job) -> tuple[Trial, list[str]]:
        trial, notes = super().run(job)
        return trial, random.choice((notes, Heavy()))


def told_file(folder: Path, pid: int) -> Path:
    """Where a driver writes what its optimizer is told; there once its loop begins."""
    return folder / f"told-{pid}"


def sit(address: str, folder: Path, workers: int, optimizer: str, limit: int) -> None:
    """One sitting of the search, in a process of its own; ends it with its exit code.

    Args:
        address: Of the cluster.
        folder: Run folder.
        workers: How many are wished for.
        optimizer: A key of ``tests.test_study.OPTIMIZERS``.
        limit: Bytes that the disk has left for the journal; 0: enough.
    """
    folder.mkdir(parents=True, exist_ok=True)
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    try:
        code = drive(address, folder, workers, optimizer, limit)
    except RunFolderError as e:
        code = FULL if "Free some space" in str(e) else 1
        say(e)
    except StudyError as e:
        code = LOST if "the same command continues" in str(e) else 1
        say(e)
    except BaseException:
        code = 1
        say(traceback.format_exc())
    sys.exit(code)


def say(words: object) -> None:
    """The limit on the journal holds for the output too: it is lifted first."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    os.write(2, f"{words}\n".encode())


def drive(address: str, folder: Path, workers: int, optimizer: str, limit: int) -> int:
    from evomerge.store import JOURNAL
    from tests.test_study import build

    executors._Actor = SleepingActor
    spec = WorkerSpec(pool=None, evaluator=None, device="cpu")
    executor = executors.RayExecutor(
        spec, address=address, workers=workers, cpus_per_worker=1, max_attempts=20
    )
    study, store = build(folder, executor, optimizer=optimizer, n_trials=N_TRIALS)
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        size = (folder / JOURNAL).stat().st_size + limit
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    with told_file(folder, os.getpid()).open("w", buffering=1) as told:
        tell = study._optimizer.tell

        def witness(trials) -> None:
            told.writelines(f"{t.number}\n" for t in trials)
            tell(trials)

        study._optimizer.tell = witness
        try:
            return 0 if study.run() else 1
        finally:
            store.close()
            executor.close()
