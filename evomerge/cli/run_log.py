"""The log file of a run, which appears only where there is a run folder."""

from __future__ import annotations

import logging
from pathlib import Path


class RunLog(logging.FileHandler):
    """A file handler that drops what is logged before its folder exists.

    A mistake in the configuration makes no folder, and a warning is no reason to fail.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one record."""
        if self.stream is None and not Path(self.baseFilename).parent.is_dir():
            return
        super().emit(record)
