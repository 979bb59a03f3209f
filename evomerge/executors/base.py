"""What an executor is: jobs in, finished trials out."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from evomerge.racing import Bar
from evomerge.trial import Trial


@dataclasses.dataclass(frozen=True)
class Job:
    """A RUNNING trial to be materialised and scored on ``trial.split``.

    Attributes:
        trial: The trial.
        bar: What it is raced against; None: it is asked all documents.
    """

    trial: Trial
    bar: Bar | None = None


class Executor(Protocol):
    """Runs jobs on workers."""

    @property
    def capacity(self) -> int:
        """How many jobs can make progress at once; rises and falls as workers come and go."""
        ...

    def warm_up(self) -> None:
        """Blocks until a worker is ready; raises an EvomergeError when none can be built."""
        ...

    def submit(self, job: Job) -> None:
        """Queues a job; returns at once."""
        ...

    def collect(self, timeout: float | None = None) -> list[Trial]:
        """Blocks for at least one finished trial, or for ``timeout`` seconds.

        Never raises for a trial's failure: a failed job comes back as a FAILED trial with its
        traceback. Returns [] on time-out, when nothing is in flight, or when ``capacity`` has
        risen.
        """
        ...

    def close(self) -> None:
        """Stops the workers; what is in flight is dropped."""
        ...
