"""Progress on stderr: a bar on a terminal, an occasional line elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

_SECONDS_BETWEEN_LINES = 15.0


class Progress(Protocol):
    """What the builder tells about its work."""

    def stage(self, name: str) -> None:
        """Names what is being done now."""

    def advance(self, steps: float) -> None:
        """Adds finished steps; called from one thread at a time or several."""


class _Silent:
    def stage(self, name: str) -> None:
        pass

    def advance(self, steps: float) -> None:
        pass


class _Lines:
    def __init__(self, total: float) -> None:
        self._total, self._done, self._name = total, 0.0, ""
        self._started = self._told = time.monotonic()

    def stage(self, name: str) -> None:
        self._name = name
        self._tell()

    def advance(self, steps: float) -> None:
        self._done += steps
        if time.monotonic() - self._told >= _SECONDS_BETWEEN_LINES:
            self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        share = min(99, int(100 * self._done / self._total))
        seconds = int(self._told - self._started)
        print(f"zoo: {share:2d}%  {seconds}s  {self._name}", file=sys.stderr, flush=True)


@contextmanager
def progress_bar(total: float, shown: bool) -> Iterator[Progress]:
    """Open a display for a build.

    Args:
        total: Steps of the whole build.
        shown: False for no output at all.

    Yields:
        What to tell.
    """
    if not shown:
        yield _Silent()
    elif not sys.stderr.isatty():
        yield _Lines(total)
    else:
        from rich import progress as rich_progress
        from rich.console import Console

        with rich_progress.Progress(
            rich_progress.TextColumn("zoo"),
            rich_progress.BarColumn(),
            rich_progress.TaskProgressColumn(),
            rich_progress.TimeElapsedColumn(),
            rich_progress.TimeRemainingColumn(),
            rich_progress.TextColumn("{task.description}"),
            console=Console(stderr=True),
        ) as bar:
            task = bar.add_task("", total=total)

            class Bar:
                def stage(self, name: str) -> None:
                    bar.update(task, description=name)

                def advance(self, steps: float) -> None:
                    bar.advance(task, steps)

            yield Bar()
