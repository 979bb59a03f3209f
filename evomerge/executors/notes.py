"""What workers did and warned of: log records that travel to the driver with their answers.

Every worker logs each of its jobs to the logger :data:`WORKERS`; ``evomerge search`` writes that
logger to ``workers.jsonl`` in the run folder (:mod:`evomerge.cli.run_log`). A worker of another
process keeps its records, and its warnings, until its next answer takes them along.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Sequence
from typing import Any

from evomerge.trial import Trial

WORKERS = logging.getLogger("evomerge.workers")
"""What workers did; a record's ``event`` attribute holds it as plain data."""

_log = logging.getLogger(__name__)


def note_job(trial: Trial) -> None:
    """Logs a job that this process's worker has finished."""
    seconds = dict(trial.scores.seconds) if trial.scores is not None else {}
    event: dict[str, Any] = {
        "trial": trial.number, "kind": trial.kind, "split": trial.split,
        "attempt": trial.attempt, "state": str(trial.state), "seconds": seconds,
    }  # fmt: skip
    if trial.error:
        event["error"] = trial.error.strip().splitlines()[-1]
    told = " and ".join(f"{what} {s:.2f} s" for what, s in seconds.items()) or "no time"
    text = f"{trial.name} on {trial.split}: {trial.state}, {told}"
    WORKERS.info("%s", text, extra={"event": {**_who(), **event}})


def _who() -> dict[str, Any]:
    return {"node": platform.node(), "process": os.getpid()}


class Notes(logging.Handler):
    """Keeps records as plain data, for the driver.

    What :data:`WORKERS` logs at INFO, and what anything else warns of: Ray would leave it in a
    file that nobody opens.
    """

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._records: list[dict[str, Any]] = []
        WORKERS.setLevel(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps one record."""
        keys = ("name", "levelno", "levelname", "created", "event")
        plain = {k: getattr(record, k) for k in keys if hasattr(record, k)}
        self._records.append({"event": _who(), **plain, "msg": record.getMessage()})

    def take(self) -> list[dict[str, Any]]:
        """The records since the last time."""
        records, self._records = self._records, []
        return records


class Repeater:
    """Logs a worker's records in the driver's process: each warning once, all to WORKERS."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def repeat(self, records: Sequence[dict[str, Any]]) -> None:
        """Logs what an answer brought along."""
        for plain in records:
            record = logging.makeLogRecord(plain)
            if WORKERS.handlers and WORKERS.isEnabledFor(record.levelno):
                WORKERS.handle(record)
            if record.levelno >= logging.WARNING and record.msg not in self._said:
                self._said.add(record.msg)
                _log.warning("%s", record.msg)
