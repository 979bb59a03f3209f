"""Which node does how much of a running search."""

from __future__ import annotations

import logging
import time
from collections import defaultdict

from evomerge.executors.notes import WORKERS
from evomerge.report.data import printable

_SHOWN = 4
_RECENT = 600.0  # seconds after which a worker that was not heard of is not counted


class LiveNodes(logging.Handler):
    """Counts jobs by node, from what workers log (:mod:`evomerge.executors.notes`)."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._jobs: dict[str, int] = defaultdict(int)
        self._heard: dict[str, dict[int, float]] = defaultdict(dict)

    def listen(self) -> None:
        """Begins to count."""
        WORKERS.addHandler(self)

    def stop(self) -> None:
        """Ends it."""
        WORKERS.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Counts a job."""
        event = getattr(record, "event", {})
        if "trial" not in event:
            return
        node = str(event["node"])
        self._jobs[node] += 1
        self._heard[node][event["process"]] = time.monotonic()

    def line(self) -> str:
        """The busiest nodes, with their workers; nothing while there is only one node."""
        if len(self._jobs) < 2:
            return ""
        now = time.monotonic()
        shown = []
        for node, jobs in sorted(self._jobs.items(), key=lambda kv: (-kv[1], kv[0])):
            n = sum(now - heard < _RECENT for heard in self._heard[node].values())
            workers = f"{n} worker{'s' * (n != 1)}" if n else "silent"
            shown.append(f"{printable(node)} {jobs} ({workers})")
        more = len(shown) - _SHOWN
        return ", ".join(shown[:_SHOWN]) + (f", {more} more" if more > 0 else "")
