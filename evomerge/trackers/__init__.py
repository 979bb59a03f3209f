"""Trackers: what a search tells an experiment tracker while it runs; one small file each.

* :mod:`~evomerge.trackers.mlflow`: MLflow.

A tracker is an :class:`evomerge.study.Observer` with ``close(finished)``. It is a courtesy: the
run folder holds everything, so a tracker that fails is left out with a warning, and never ends a
search. To add one: one file here, one in ``conf/tracker``, one test.
"""

from __future__ import annotations

import logging
from typing import Any

from evomerge.trial import Trial

_log = logging.getLogger(__name__)


class Both:
    """Two observers as one: the live view, and a tracker until it fails.

    Args:
        view: Whose errors are errors.
        tracker: Whose errors are warnings; None: no tracker.
    """

    def __init__(self, view: Any, tracker: Any) -> None:
        self._view, self._tracker = view, tracker

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
        if self._tracker is None:
            return
        try:
            getattr(self._tracker, event)(*arguments, **named)
        except Exception as e:  # noqa: BLE001 - a server that is away
            _log.warning("the tracker is left out from here on: %s: %s", type(e).__name__, e)
            self._tracker = None
