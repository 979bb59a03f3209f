"""Trackio: one run for each run folder, one step for each trial, in a local SQLite file."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigError
from evomerge.trackers import facts, key_of, measures
from evomerge.trial import Objective, Trial


class Trackio:
    """Logs raw scores as ``SPLIT.OBJECTIVE`` and where the time went, with the trial's number.

    A run that continues goes on in the same Trackio run; what was logged is not logged again.

    Args:
        folder: The run folder.
        objectives: What is scored.
        meta: See :attr:`evomerge.run.Run.meta`.
        project: Trackio's project: a file in its folder (``TRACKIO_DIR``), or on ``space``.
        space: A Hugging Face Space to log to; None: this machine.

    Raises:
        ConfigError: Trackio is not installed, or cannot begin.
    """

    def __init__(
        self,
        *,
        folder: Path,
        objectives: Sequence[Objective],
        meta: Mapping[str, Any],
        project: str = "evomerge",
        space: str | None = None,
    ) -> None:
        try:
            import trackio
        except ImportError as e:
            raise ConfigError(
                "tracker=trackio is an extra: pip install 'evomerge[trackio]'."
            ) from e
        self._objectives, self._count = tuple(objectives), 0
        try:
            with _silent():
                self._run = trackio.init(
                    project, name=f"{folder.name}-{key_of(folder)[:8]}", space_id=space,
                    config=facts(meta), resume="allow", embed=False, auto_log_cpu=False,
                    auto_log_gpu=False,
                )  # fmt: skip
        except Exception as e:
            raise ConfigError(f"tracker=trackio: Trackio says: {str(e).strip()}") from e
        # The step that it would give to what is logged next: how many it has.
        self._logged = int(self._run._next_step)

    def asked(self, n: int, seconds: float) -> None:
        """Not logged."""

    def phase(self, phase: str, total: int) -> None:
        """Not logged."""

    def started(self, trial: Trial) -> None:
        """Not logged."""

    def told(self, trial: Trial) -> None:
        """Logs a trial as one step, unless an earlier sitting did."""
        self._count += 1
        if self._count > self._logged:
            values = {"trial": trial.number, **measures(trial, self._objectives)}
            self._run.log(values, step=self._count - 1)

    def close(self, *, finished: bool) -> None:
        """Writes what is left; the run continues when the search does."""
        del finished
        with _silent():
            self._run.finish()


@contextlib.contextmanager
def _silent() -> Any:
    """Trackio greets on the terminal, where the live view is."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
