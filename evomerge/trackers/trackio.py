"""Trackio: one run for each run folder, one step for each trial, in a local SQLite file."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigError
from evomerge.trackers import TrialLog, facts, key_of
from evomerge.trial import Objective, Trial


class Trackio(TrialLog):
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
        super().__init__(objectives)
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
        self.logged = int(self._run._next_step)

    def _log(self, trial: Trial, count: int, values: Mapping[str, float]) -> None:
        self._run.log({"trial": trial.number, **values}, step=count - 1)

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
