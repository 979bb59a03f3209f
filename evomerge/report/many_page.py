"""Many runs as one self-contained HTML page, and as tables for a terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.choose import front, is_reference
from evomerge.report import markup
from evomerge.report.data import called, printable, raw, replace, summary
from evomerge.report.many import Comparison
from evomerge.report.many_tables import contenders_table, headline, runs_table, to_json
from evomerge.report.page_data import levels, rounded
from evomerge.report.terminal import show_table

if TYPE_CHECKING:
    from rich.console import Console

SCRIPTS = ("draw.js", "plots.js", "many.js", "page.js")


def write_html(c: Comparison, path: Path) -> None:
    """Writes the comparison as one HTML file, in one step.

    Raises:
        ExportError: The file cannot be written.
    """
    replace(path, page(c).encode("utf-8", "replace"))


def write_json(c: Comparison, path: Path) -> None:
    """Writes the comparison as JSON, in one step.

    Raises:
        ExportError: The file cannot be written.
    """
    text = json.dumps(to_json(c), allow_nan=False, indent=1, ensure_ascii=False)
    replace(path, (text + "\n").encode("utf-8", "replace"))


def show(c: Comparison, console: Console) -> None:
    """Prints the comparison."""
    from rich.text import Text

    words, _, sentence = headline(c)
    console.print()
    console.print(Text(words, style="bold"))
    console.print(Text(sentence))
    for table in (contenders_table(c), runs_table(c)):
        show_table(table, console)


def page(c: Comparison) -> str:
    """The comparison as HTML text."""
    words, tone, sentence = headline(c)
    contenders, runs = contenders_table(c), runs_table(c)
    many = len(c.runs[0].searched) > 1
    over = markup.chooser(
        "over", "over", {"trials": "evaluations", "time": "worker time"}, "trials"
    )
    plots = markup.plot("best", "best score so far, medians over seeds")
    plots += markup.plot("volume", "hypervolume, medians over seeds") if many else ""
    note = (
        "Lines are medians over the seeds; the band holds the middle half of them, with fewer "
        "than five all. Dotted: the reference points."
    )
    body = f'<div class="controls">{over}</div><div class="plots{"" if many else " one"}">{plots}'
    parts = {
        "contenders": (contenders.title, contenders.note, markup.table_html(contenders)),
        "search": ("The searches", note, body + "</div>"),
    }
    if many:
        text = "Each run's own front. Better is up and to the right."
        parts["front"] = ("Every front", text, _controls(c) + markup.plot("front", "fronts", "tall"))
    parts["runs"] = (runs.title, runs.note, markup.table_html(runs))
    facts = {
        "runs": f"{len(c.runs)} runs, {_counted(len(c.contenders))}",
        "budget": f"{c.budget} trials each",
        "objectives": ", ".join(printable(o.name) for o in c.runs[0].searched),
    }
    html = [
        markup.header(f"{len(c.runs)} runs", words, tone, sentence, facts),
        markup.contents({key: title for key, (title, _, _) in parts.items()}),
        *(markup.section(key, *part) for key, part in parts.items()),
        markup.footer([r.path for r in c.runs[:6]] + ["\u2026"] * (len(c.runs) > 6)),
    ]
    return markup.document(f"{words} \u00b7 {len(c.runs)} runs", html, _drawn(c), SCRIPTS)


def _counted(n: int) -> str:
    return f"{n} contender{'s' * (n != 1)}"


def _controls(c: Comparison) -> str:
    names = {str(i): o.name for i, o in enumerate(c.runs[0].searched)}
    return (
        '<div class="controls">'
        + markup.chooser("across", "across", names, "0")
        + markup.chooser("up", "up", names, "1")
        + "</div>"
    )


def _drawn(c: Comparison) -> dict[str, Any]:
    """What the scripts draw."""
    objectives = c.runs[0].searched
    return {
        "title": c.scale.title,
        "budget": c.budget,
        "objectives": [
            {
                "name": printable(o.name),
                "metric": printable(o.metric),
                "up": o.direction == "maximize",
            }
            for o in objectives
        ],
        "levels": levels(c.runs[0]),
        "contenders": [
            {
                "name": one.name,
                "runs": [
                    {
                        "name": printable(run.path.name),
                        "seconds": [rounded(v) for v in course.seconds],
                        "best": [rounded(v) for v in course.best],
                        "volume": [rounded(v) for v in course.volume],
                        "before": rounded(course.volume_before),
                        "front": [
                            {
                                "name": called(t),
                                "recipe": summary(t.recipe),
                                "raw": [rounded(raw(o, t)) for o in objectives],
                            }
                            for t in front(run)
                            if not is_reference(t)
                        ],
                    }
                    for run, course in zip(one.runs, one.courses, strict=True)
                ],
            }
            for one in c.contenders
        ],
        "references": [
            {"name": called(t), "raw": [rounded(raw(o, t)) for o in objectives]}
            for t in c.runs[0].complete("search")
            if is_reference(t)
        ],
    }
