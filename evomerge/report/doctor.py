"""A diagnosis in a terminal: the answer, the findings, the numbers, where to start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from evomerge.diagnose import Diagnosis
from evomerge.diagnose.casting import LEVELS
from evomerge.diagnose.vectors import Vectors
from evomerge.report.data import printable
from evomerge.roles import layer_of

if TYPE_CHECKING:
    from rich.console import Console

_BLOCKS = 8
"""Blocks of layers that the table shows at most; the picture and the JSON have every layer."""
_USUAL = LEVELS.index(0.4)


def show_diagnosis(found: Diagnosis, console: Console | None = None) -> None:
    """Prints a diagnosis.

    Args:
        found: Any diagnosis.
        console: A rich console; the terminal by default.
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    console.print(Text(printable(found.headline), style="bold"), soft_wrap=True)
    console.print()
    for name in ("base", *found.experts):
        _show_model(found, name, console)
    if found.vectors is not None:
        _show_vectors(found, found.vectors, console)
        _show_places(found.vectors, console)
        _show_gauge(found, console)
    if found.advice is not None:
        _show_advice(found, console)


def _show_model(found: Diagnosis, name: str, console: Console) -> None:
    from rich.padding import Padding
    from rich.text import Text

    about = [f for f in found.findings if f.model == name]
    if name == "base" and not about:
        return
    blocked = name in found.blocked
    word, style = ("cannot be merged as it is", "red") if blocked else ("can be merged", "green")
    if name == "base":
        word = "cannot be used"
    console.print(Text.assemble((printable(name), "bold"), "  ", (word, style)))
    for finding in about:
        tone = "" if finding.blocks else "yellow"
        lead = "" if finding.blocks else "Note: "
        text = Text.assemble((lead, tone), printable(finding.text))
        if finding.remedy:
            text.append(" " + printable(finding.remedy), style="dim")
        console.print(Padding(text, (0, 0, 0, 2)))


def _show_vectors(found: Diagnosis, vectors: Vectors, console: Console) -> None:
    """One row per expert: size, angles, what rounding makes of 0.4."""
    several = len(vectors.names) > 1
    heading = ["expert", "moved, of the\nbase's norm", "entries\nchanged"]
    if several:
        heading += [f"cosine with\n{printable(n)}" for n in vectors.names]
    if found.realised is not None:
        heading.append("rounded, 0.4\nbecomes")
    total = sum(g.size for g in vectors.groups)
    rows = []
    for k, name in enumerate(vectors.names):
        row = [printable(name), f"{vectors.overall[k]:.2%}", f"{vectors.moved[k] / total:.0%}"]
        if several:
            row += [f"{c:.2f}" if i != k else "" for i, c in enumerate(vectors.cosines[k])]
        if found.realised is not None:
            row.append(f"{found.realised[k, _USUAL]:.2f}")
        rows.append(row)
    _table("Task vectors (expert - base)", heading, rows, console)


def _show_places(vectors: Vectors, console: Console) -> None:
    """Blocks of layers: how far each expert moved, and how often signs disagree."""
    heading = ["layer group", *(printable(n) for n in vectors.names)]
    several = len(vectors.names) > 1
    if several:
        heading.append("opposite\nsigns")
    rows = []
    for name, members in _blocks(vectors):
        base = vectors.products[members, 0, 0].sum()
        norms = np.sqrt((vectors.norms[members] ** 2).sum(axis=0))
        row = [name, *(f"{n / base**0.5:.2%}" if base > 0 else "-" for n in norms)]
        if several:
            contested = vectors.contested[members].sum()
            row.append(f"{vectors.conflicts[members].sum() / contested:.0%}" if contested else "-")
        rows.append(row)
    _table("Where they moved, of the base's norm there", heading, rows, console)


def _blocks(vectors: Vectors) -> list[tuple[str, list[int]]]:
    """Name and fine groups of at most _BLOCKS blocks of layers, and of what lies outside."""
    layer = [layer_of(g.group.tensors[0]) for g in vectors.groups]
    n = 1 + max((i for i in layer if i is not None), default=-1)
    members: dict[str, list[int]] = {}
    edges = np.unique(np.linspace(0, n, min(n, _BLOCKS) + 1).round().astype(int))
    for g, group in enumerate(vectors.groups):
        at = layer[g]
        if at is None:
            name = f"{group.role} (outside)" if group.role == "norm" else group.role
        else:
            block = int(np.searchsorted(edges, at, side="right")) - 1
            first, last = int(edges[block]), int(edges[block + 1]) - 1
            name = f"layers.{first}" if first == last else f"layers.{first}-{last}"
        members.setdefault(name, []).append(g)
    return list(members.items())


def _show_gauge(found: Diagnosis, console: Console) -> None:
    from rich.text import Text

    gauge, hit = found.gauge, [f.model for f in found.findings if f.kind == "re-parametrised"]
    if gauge is None:
        return
    checked = " and ".join({"VO": "value-output", "QK": "query-key"}[p] for p in gauge.change)
    lines = []
    if checked:
        answer = f"re-parametrised: {', '.join(map(printable, hit))}" if hit else "nothing hidden"
        lines.append(
            f"{checked} weights of {len(gauge.layers)} layers against their products: {answer}."
        )
    lines += [
        f"{pair}: not checked, since {printable(why)}." for pair, why in gauge.skipped.items()
    ]
    console.print()
    console.print(Text("Gauge check", style="bold"))
    for line in lines:
        console.print(Text(line))


def _show_advice(found: Diagnosis, console: Console) -> None:
    from rich.padding import Padding
    from rich.text import Text

    advice = found.advice
    assert advice is not None  # noqa: S101 - the caller looked
    console.print()
    console.print(Text(f"Start with {advice.method}, search space {advice.space}", style="bold"))
    command = " ".join(
        ["evomerge search mine.yaml", f"search_space={advice.space}", *advice.overrides]
    )
    console.print(Text("  " + command), soft_wrap=True)
    for sentence in (*advice.reasons, *advice.then):
        console.print(Padding(Text(sentence), (0, 0, 0, 2)))


def _table(
    title: str, heading: Sequence[str], rows: Sequence[Sequence[str]], console: Console
) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console.print()
    console.print(Text(title, style="bold"))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
    for i, name in enumerate(heading):
        table.add_column(Text(name), justify="right" if i else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
