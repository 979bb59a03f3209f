"""The report as text: tables for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evomerge.luck import luck
from evomerge.report.cells import Table
from evomerge.report.data import printable
from evomerge.report.facts import commands, facts
from evomerge.report.tables import tables
from evomerge.run import Run
from evomerge.verdict import verdict

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 180
"""Characters that a line of the widest table takes."""


def text(run: Run, width: int = WIDTH) -> str:
    """The report as plain text.

    Args:
        run: Any run, finished or not.
        width: Columns of the terminal.

    Returns:
        Text without colours or escape sequences.
    """
    import io

    from rich.console import Console

    out = io.StringIO()
    show(run, Console(file=out, width=width, color_system=None, legacy_windows=False))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def show(run: Run, console: Console | None = None) -> None:
    """Prints the report.

    Args:
        run: Any run, finished or not.
        console: A rich console; the terminal by default.
    """
    from rich.console import Console
    from rich.text import Text

    if console is None:
        console = Console()
        if not console.is_terminal:
            console.width = WIDTH
    answer = verdict(run)
    console.print()
    console.print(Text(printable(answer.headline), style="bold"))
    console.print(Text(printable(answer.sentence)))
    if (chance := luck(run)) is not None and chance.gain > 0:
        console.print(Text(printable(chance.sentence)))
    console.print()
    for name, value in facts(run):
        console.print(Text.assemble((f"{name:<13}", "dim"), value))
    made = tables(run, answer)
    for table in made:
        show_table(table, console)
    best = answer.trial
    if best is not None:
        console.print()
        console.print(Text("Export and verify", style="bold"))
        for line in commands(run, best):
            console.print(Text("  " + printable(line)), soft_wrap=True)
        if any(row.pick for t in made for row in t.rows[1:]):
            console.print(
                Text("  For any other row the same, with trial=N and its number (#).", style="dim")
            )


def show_table(table: Table, console: Console) -> None:
    """Prints one table."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    styles = {"good": "green", "bad": "red", "muted": "dim", "strong": "bold", "": ""}
    console.print()
    console.print(Text(table.title, style="bold"))
    if table.note:
        console.print(Text(table.note, style="dim"))
    shown = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
    numbered = any(row.pick for row in table.rows)
    narrow = console.width < WIDTH
    kept = [i for i, c in enumerate(table.columns) if not (narrow and c.name == "95% CI")]
    for i in kept:
        column = table.columns[i]
        heading = Text(printable(column.name) if column.name else "")
        if column.unit:
            heading.append(f"\n{column.unit}")
        shown.add_column(
            heading,
            justify="right" if column.numeric else "left",
            overflow="fold",
            no_wrap=column.numeric or i == 0,
        )
    if numbered:
        shown.add_column(Text("#"), justify="right", no_wrap=True)
    for row in table.rows:
        cells = [Text(row.cells[i].text, style=styles[row.cells[i].tone]) for i in kept]
        if numbered:
            cells.append(Text(row.pick.removeprefix("trial="), style="dim"))
        shown.add_row(*cells)
    console.print(shown)
