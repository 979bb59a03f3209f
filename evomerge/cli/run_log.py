"""The log files of a run, which appear only where there is a run folder."""

from __future__ import annotations

import datetime
import json
import logging
from pathlib import Path
from typing import Any


class RunLog(logging.FileHandler):
    """A file handler that drops what is logged before its folder exists.

    A mistake in the configuration makes no folder, and a warning is no reason to fail.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one record."""
        if self.stream is None and not Path(self.baseFilename).parent.is_dir():
            return
        super().emit(record)


class JsonLines(logging.Formatter):
    """One JSON object for a record: time, level, what its ``event`` says, and the text."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            **getattr(record, "event", {}),
            "text": record.getMessage(),
        }
        return json.dumps(line, ensure_ascii=False, default=str)
