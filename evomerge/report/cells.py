"""What a table of a report is made of, and how it writes numbers."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

Tone = Literal["", "good", "bad", "muted", "strong"]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell: its text, its tone, what it says when pointed at, and a bar of 0 to 1."""

    text: str
    tone: Tone = ""
    title: str = ""
    fill: float = 0.0


@dataclasses.dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        cells: One per column.
        pick: What ``evomerge export --pick`` calls this row's recipe, or "".
        commands: Shell lines that export and verify it.
        interval: (low, mean, high) to draw, or None.
        details: Long text that belongs to the row (a traceback).
        rival: Whether this is the row that the others are compared with.
    """

    cells: tuple[Cell, ...]
    pick: str = ""
    commands: tuple[str, ...] = ()
    interval: tuple[float, float, float] | None = None
    details: str = ""
    rival: bool = False


@dataclasses.dataclass(frozen=True)
class Column:
    """A column: its heading, a second line below it, and whether it holds numbers."""

    name: str
    unit: str = ""
    numeric: bool = False


def figures(name: str, unit: str = "") -> Column:
    """A column of numbers."""
    return Column(name, unit, numeric=True)


@dataclasses.dataclass(frozen=True)
class Table:
    """A table with a title, a remark and its rows."""

    key: str
    title: str
    note: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


def number(value: float, sign: bool = False) -> str:
    """A value in as many digits as anybody reads."""
    if math.isnan(value):
        return "\u2013"
    if math.isinf(value) or abs(value) >= 1e4:
        return f"{value:+.2e}" if sign else f"{value:.2e}"
    digits = 3 if abs(value) < 100 else 1
    value = round(value, digits) + 0.0  # no negative zero
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def span(low: float, high: float) -> str:
    """An interval."""
    return "\u2013" if math.isnan(low) or math.isnan(high) else f"{number(low)} to {number(high)}"


def duration(seconds: float) -> str:
    """Seconds for people."""
    if not math.isfinite(seconds):
        return "\u2013"
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 90:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
