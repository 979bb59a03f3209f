"""What Ray's dashboard and Prometheus show of a search: counters and gauges of ``ray.util``.

Every node of a cluster serves its metrics over HTTP where ``ray[default]`` is installed
(https://docs.ray.io/en/latest/cluster/metrics.html); names get a prefix ``ray_``. Where it is not,
they go nowhere.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from evomerge.trial import Trial


class RayMetrics:
    """Counts trials and seconds, and says how busy the workers are.

    Trials that earlier sittings told, and copies, are not counted: no worker spent anything on
    them.

    Args:
        run: What the ``run`` tag says.
        capacity: How many workers there are now.
    """

    def __init__(self, run: str, capacity: Callable[[], int]) -> None:
        from ray.util.metrics import Counter, Gauge

        tags = ("run",)
        self._trials = Counter(
            "evomerge_trials", "Finished trials.", tag_keys=("run", "split", "state")
        )
        self._seconds = Counter(
            "evomerge_trial_seconds",
            "Seconds of trials: merging, scoring, and waiting for a worker.",
            tag_keys=("run", "what"),
        )
        self._workers = Gauge("evomerge_workers", "Workers of the search.", tag_keys=tags)
        self._busy = Gauge(
            "evomerge_busy_share", "Share of the workers that have a trial.", tag_keys=tags
        )
        for metric in (self._trials, self._seconds, self._workers, self._busy):
            metric.set_default_tags({"run": run})
        self._capacity = capacity
        self._running: set[tuple[int, str]] = set()

    @classmethod
    def where_ray_runs(cls, run: str, capacity: Callable[[], int]) -> RayMetrics | None:
        """The metrics, or None where no Ray was started in this process: it is not imported."""
        ray = sys.modules.get("ray")
        return cls(run, capacity) if ray is not None and ray.is_initialized() else None

    def asked(self, n: int, seconds: float) -> None:
        """Not measured."""

    def phase(self, phase: str, total: int) -> None:
        """Not measured."""

    def started(self, trial: Trial) -> None:
        """A worker has more to do."""
        self._running.add((trial.number, trial.split))
        self._gauge()

    def told(self, trial: Trial) -> None:
        """Counts a trial that a worker finished in this sitting."""
        if (trial.number, trial.split) not in self._running:
            return
        self._running.remove((trial.number, trial.split))
        self._trials.inc(1, {"split": trial.split, "state": str(trial.state)})
        for what, seconds in (trial.scores.seconds if trial.scores else {}).items():
            if seconds > 0:
                self._seconds.inc(seconds, {"what": what})
        self._gauge()

    def close(self, *, finished: bool) -> None:
        """Nothing runs any more."""
        del finished
        self._running.clear()
        self._gauge()

    def _gauge(self) -> None:
        workers = max(1, self._capacity())
        self._workers.set(workers)
        self._busy.set(min(1.0, len(self._running) / workers))
