"""A diagnosis as one picture: a self-contained SVG, drawn here so that it needs no library.

A heat map per expert (how far every layer's attention, MLP and norms moved; below them the gauge
check), one of the sign conflicts, and the matrix of cosines.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from evomerge.diagnose import Diagnosis
from evomerge.diagnose.vectors import Array, Vectors
from evomerge.diagnose.verdicts import hidden
from evomerge.errors import ConfigError, ExportError
from evomerge.report.data import printable
from evomerge.report.picture import FONT, INK, MERGED, MUTED, PAPER, SINGLE
from evomerge.roles import ROLES, layer_of

_LEFT, _TOP, _ROW, _SPAN = 150, 64, 18, 720
_LETTERS = 90
"""Of the headline, in one line."""
_WRITTEN = 44
"""Pixels that a cell needs to have its number written into it."""
_PAIRS = {"QK": "query-key", "VO": "value-output"}


def write_picture(found: Diagnosis, path: Path) -> None:
    """Writes the SVG.

    Raises:
        ConfigError: A file name that does not end in ``.svg``.
        ExportError: It cannot be written.
    """
    if path.suffix.lower() != ".svg":
        raise ConfigError(f"--picture: expected a file that ends in .svg, got {str(path)!r}.")
    try:
        path.write_text(svg(found), encoding="utf-8")
    except OSError as e:
        raise ExportError(f"{path} cannot be written: {e.strerror}.") from e


def svg(found: Diagnosis) -> str:
    """The picture as text."""
    lines = textwrap.wrap(printable(found.headline), _LETTERS) or [""]
    parts = [_text(20, 30 + 22 * i, t, size=17, weight=600) for i, t in enumerate(lines)]
    y = _TOP + 22.0 * (len(lines) - 1)
    if found.vectors is None:
        for finding in found.findings:
            parts.append(_text(20, y, f"{finding.model}: {finding.kind}", MUTED))
            y += _ROW
    else:
        note = (
            "Darker: further from the base, on a log scale. Gauge rows, orange: re-parametrised."
        )
        parts.append(_text(20, y - 16, note, MUTED))
        y += 12
        for block, height in _blocks(found, found.vectors, y):
            parts.append(block)
            y += height
    width, height = _LEFT + _SPAN + 30, y + 12
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="{html.escape(FONT)}" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="#fdfdfb"/>\n{body}\n</svg>\n'
    )


def _blocks(found: Diagnosis, vectors: Vectors, y: float) -> Iterator[tuple[str, float]]:
    """SVG and height of every block, from top to bottom."""
    known = vectors.relative[np.isfinite(vectors.relative) & (vectors.relative > 0)]
    low, high = (float(known.min()), float(known.max())) if known.size else (1.0, 1.0)

    def shade(value: float) -> str:
        span = math.log(high / low)
        at = math.log(value / low) / span if span > 0 and value > 0 else float(value > 0)
        return _mix(PAPER, MERGED, 0.1 + 0.9 * at if value > 0 else 0.0)

    shape = _Grid(vectors)
    for k, name in enumerate(vectors.names):
        title = f"{printable(name)}: moved {vectors.overall[k]:.2%} of the base's norm"
        rows = list(_gauge_rows(found, k))
        drawn, height = shape.heat(title, vectors.relative[:, k], shade, y, rows)
        yield drawn, height
        y += height
    if len(vectors.names) > 1:
        title = f"signs disagree in {vectors.overall_conflict:.0%} of the entries moved by several"
        drawn, height = shape.heat(title, vectors.conflict, lambda v: _mix(PAPER, SINGLE, v), y)
        yield drawn, height
        yield _cosines(vectors, y + height)


class _Grid:
    """Where a layer group stands: its column by layer, its row by role.

    Groups outside the layers get columns of their own at both ends.
    """

    def __init__(self, vectors: Vectors) -> None:
        layers = [layer_of(g.group.tensors[0]) for g in vectors.groups]
        self.n = 1 + max((i for i in layers if i is not None), default=-1)
        self.groups = vectors.groups
        ends = [g for g, i in enumerate(layers) if i is None]
        first = [g for g in ends if vectors.groups[g].depth == 0]
        last = [g for g in ends if vectors.groups[g].depth > 0]
        self.first = len(first)
        columns = {g: i for i, g in enumerate(first)}
        columns |= {g: self.first + self.n + i for i, g in enumerate(last)}
        columns |= {g: self.first + i for g, i in enumerate(layers) if i is not None}
        inside = {self.groups[g].role for g, i in enumerate(layers) if i is not None}
        self.roles = [r for r in ROLES if r in inside]
        self.columns, self.ends = columns, set(ends)
        self.cell = _SPAN / max(1, self.n + len(ends))
        self.labels = [
            *(self.groups[g].role for g in first),
            *map(str, range(self.n)),
            *(self.groups[g].role for g in last),
        ]

    def heat(
        self,
        title: str,
        values: Array,
        colour: Callable[[float], str],
        y: float,
        extra: Sequence[tuple[str, dict[int, tuple[str, str]]]] = (),
    ) -> tuple[str, float]:
        """SVG and height of one map; ``extra`` rows give layer -> (colour, tip)."""
        parts = [_text(20, y, title, weight=600)]
        for g, column in self.columns.items():
            group, value = self.groups[g], float(values[g])
            tip = f"{group.group.name}: {value:.2%}"
            row, height = 0, max(1, len(self.roles))
            if g not in self.ends:
                row, height = self.roles.index(group.role), 1
            parts.append(self._cell(column, row, y, (colour(value), tip), height))
            if self.cell >= _WRITTEN and math.isfinite(value):
                middle = _LEFT + (column + 0.5) * self.cell
                at = y + 12 + (row + height / 2) * _ROW
                ink = "#ffffff" if _dark(colour(value)) else INK
                parts.append(_text(middle, at, f"{value:.1%}", ink, middle=True))
        for r, (label, cells) in enumerate(extra, len(self.roles)):
            parts.append(_text(20, y + 21 + r * _ROW, label, MUTED))
            parts += [self._cell(self.first + at, r, y, cell) for at, cell in cells.items()]
        parts += [_text(20, y + 21 + r * _ROW, role, MUTED) for r, role in enumerate(self.roles)]
        below = y + 20 + (len(self.roles) + len(extra)) * _ROW
        every = max(1, math.ceil(34 / self.cell))
        for i, label in enumerate(self.labels):
            if not label.isdigit() or int(label) % every == 0:
                shown = label[: max(3, int(self.cell / 6))]
                middle = _LEFT + (i + 0.5) * self.cell
                parts.append(_text(middle, below, shown, MUTED, middle=True))
        return "\n".join(parts), below - y + 30

    def _cell(
        self, column: int, row: int, y: float, shown: tuple[str, str], height: int = 1
    ) -> str:
        x, top = _LEFT + column * self.cell, y + 8 + row * _ROW
        return _cell((x, top, self.cell, height * _ROW), *shown)


def _gauge_rows(found: Diagnosis, k: int) -> Iterator[tuple[str, dict[int, tuple[str, str]]]]:
    """Per pair of factors: layer -> colour and tip; orange where the change is hidden."""
    if found.gauge is None:
        return
    for pair, change in found.gauge.change.items():
        cells = {}
        for i, layer in enumerate(found.gauge.layers):
            factors, products = change[i, k]
            hit = hidden(change[i, k])
            tip = f"layer {layer}, {_PAIRS[pair]}: factors {factors:.1%}, products {products:.1%}"
            cells[layer] = (SINGLE if hit else PAPER, tip + (", re-parametrised" if hit else ""))
        yield f"gauge {_PAIRS[pair]}", cells


def _cosines(vectors: Vectors, y: float) -> tuple[str, float]:
    parts = [_text(20, y, "cosines of the task vectors", weight=600)]
    k = len(vectors.names)
    cell = min(64.0, _SPAN / k)
    for i, name in enumerate(vectors.names):
        parts.append(_text(20, y + 25 + i * 24, printable(name)[:20], MUTED))
        middle = _LEFT + (i + 0.5) * cell
        label = printable(name)[: max(3, int(cell / 7))]
        parts.append(_text(middle, y + 24 + k * 24, label, MUTED, middle=True))
        for j in range(k):
            value = float(vectors.cosines[i, j])
            fill = _mix(PAPER, MERGED if value > 0 else SINGLE, min(1.0, abs(value)))
            tip = f"{printable(name)}, {printable(vectors.names[j])}: {value:.3f}"
            x, top = _LEFT + j * cell, y + 8 + i * 24
            parts.append(_cell((x, top, cell, 24), fill, tip))
            ink = "#ffffff" if _dark(fill) else INK
            parts.append(_text(x + cell / 2, top + 16, f"{value:.2f}", ink, middle=True))
    return "\n".join(parts), 24.0 * k + 40


def _cell(box: tuple[float, float, float, float], fill: str, tip: str) -> str:
    x, y, width, height = box
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(1.0, width - 1):.1f}" '
        f'height="{height - 1:.1f}" fill="{fill}"><title>{html.escape(tip)}</title></rect>'
    )


def _text(
    x: float,
    y: float,
    text: str,
    fill: str = INK,
    *,
    size: int = 12,
    weight: int = 400,
    middle: bool = False,
) -> str:
    anchor = ' text-anchor="middle"' if middle else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{fill}" font-size="{size}" font-weight="{weight}"'
        f"{anchor}>{html.escape(printable(text))}</text>"
    )


def _dark(colour: str) -> bool:
    """Whether white is easier to read on it than ink."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return 0.3 * red + 0.6 * green + 0.1 * blue < 150


def _mix(a: str, b: str, at: float) -> str:
    """A colour between two; NaN (nothing known) is the first."""
    at = 0.0 if math.isnan(at) else min(1.0, max(0.0, at))
    ends = [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in (a, b)]
    return "#" + "".join(f"{round(p + at * (q - p)):02x}" for p, q in zip(*ends, strict=True))
