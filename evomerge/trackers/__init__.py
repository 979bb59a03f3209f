"""Trackers: what a search tells an experiment tracker while it runs; one small file each.

* :mod:`~evomerge.trackers.mlflow`: MLflow.
* :mod:`~evomerge.trackers.wandb`: Weights & Biases, online or offline.
* :mod:`~evomerge.trackers.trackio`: Trackio, a local SQLite file.
* :mod:`~evomerge.trackers.ray_metrics`: what Ray's dashboard and Prometheus show; always there
  where Ray runs.

A tracker is an :class:`evomerge.study.Observer` with ``close(finished)``. It is a courtesy: the
run folder holds everything, so a tracker that fails is left out with a warning, and never ends a
search. To add one: one file here (most are a :class:`TrialLog`), one in ``conf/tracker``, and a
test.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.trial import Objective, Trial, TrialState

_log = logging.getLogger(__name__)


class Observers:
    """Several observers as one: the live view, and trackers until they fail.

    Args:
        view: Whose errors are errors.
        trackers: Whose errors are warnings; None: no tracker.
    """

    def __init__(self, view: Any, *trackers: Any) -> None:
        self._view = view
        self._trackers = [t for t in trackers if t is not None]

    def add(self, tracker: Any) -> None:
        """One more tracker; None: none."""
        self._trackers += [] if tracker is None else [tracker]

    def asked(self, n: int, seconds: float) -> None:
        """See :class:`~evomerge.study.Observer`."""
        self._view.asked(n, seconds)
        self._track("asked", n, seconds)

    def phase(self, phase: str, total: int) -> None:
        """See :class:`~evomerge.study.Observer`."""
        self._view.phase(phase, total)
        self._track("phase", phase, total)

    def started(self, trial: Trial) -> None:
        """See :class:`~evomerge.study.Observer`."""
        self._view.started(trial)
        self._track("started", trial)

    def told(self, trial: Trial) -> None:
        """See :class:`~evomerge.study.Observer`."""
        self._view.told(trial)
        self._track("told", trial)

    def close(self, *, finished: bool) -> None:
        """The sitting is over; the view is closed by whoever opened it."""
        self._track("close", finished=finished)

    def _track(self, event: str, *arguments: Any, **named: Any) -> None:
        for tracker in list(self._trackers):
            try:
                getattr(tracker, event)(*arguments, **named)
            except Exception as e:  # noqa: BLE001 - a server that is away
                name = type(tracker).__name__
                _log.warning("%s is left out from here on: %s: %s", name, type(e).__name__, e)
                self._trackers.remove(tracker)


class TrialLog:
    """A tracker that logs each trial once, as one step, whichever sitting told it.

    Args:
        objectives: What is scored.

    Attributes:
        logged: Trials that earlier sittings logged; set by the tracker once it is connected.
    """

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self._objectives = tuple(objectives)
        self.logged = self._count = 0

    def asked(self, n: int, seconds: float) -> None:
        """Not logged."""

    def phase(self, phase: str, total: int) -> None:
        """Not logged."""

    def started(self, trial: Trial) -> None:
        """Not logged."""

    def told(self, trial: Trial) -> None:
        """Logs a trial as one step, unless an earlier sitting did."""
        self._count += 1
        if self._count > self.logged:
            self._log(trial, self._count, measures(trial, self._objectives))

    def _log(self, trial: Trial, count: int, values: Mapping[str, float]) -> None:
        """Logs the trial that is the ``count``-th to be told, counted from 1."""
        raise NotImplementedError


def key_of(folder: Path) -> str:
    """What a run folder is called where its path cannot be: 32 hex digits."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]


def facts(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What a search is, in a line: of :attr:`evomerge.run.Run.meta`."""
    space = meta["space"]
    return {
        "optimizer": meta["optimizer"],
        "seed": meta["seed"],
        "space": space["name"],
        "method": space["method"],
        "dim": space["dim"],
        "models": meta["models"]["name"],
    }


def measures(trial: Trial, objectives: Sequence[Objective]) -> dict[str, float]:
    """Raw scores of a COMPLETE trial as ``SPLIT.OBJECTIVE``, and where its time went."""
    if trial.scores is None or trial.state is not TrialState.COMPLETE:
        return {}
    sign = {o.name: o.sign for o in objectives}
    found = {f"{trial.split}.{n}": sign[n] * v for n, v in trial.scores.values.items()}
    return found | {f"seconds.{n}": s for n, s in trial.scores.seconds.items()}
