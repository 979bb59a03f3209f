"""The report of one run as a self-contained HTML page that works offline, light and dark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evomerge.luck import luck
from evomerge.report import markup
from evomerge.report.cells import Table
from evomerge.report.coefficients import effects
from evomerge.report.data import printable, replace
from evomerge.report.facts import facts
from evomerge.report.leads import leads
from evomerge.report.page_data import page_data
from evomerge.report.progress import progress
from evomerge.report.tables import tables
from evomerge.run import Run
from evomerge.verdict import Verdict, verdict

SCRIPTS = (
    "draw.js",
    "plots.js",
    "trials.js",
    "front.js",
    "search.js",
    "parallel.js",
    "page.js",
)

READING = """
<section><details class="read"><summary>How to read this page</summary>
<p>Every candidate answered the same documents in the same order. Raw values are shown in their
own direction: \u2191 higher is better, \u2193 lower is better. To make tasks comparable, an
accuracy is also taken as a share of the best expert\u2019s; a loss as gain recovered, where 0 is
the base model and 1 the best expert of that task. The normalised mean weighs the tasks as the
configuration says.</p>
<p>Intervals are 95% Student t intervals over documents. A difference is paired, document by
document, so it can be clear even where two intervals overlap. The reference scores that define 0
and 1 are taken as given, and nothing is corrected for comparing many rows.</p>
<p>The hypervolume is the share of what a merge as good as the best expert of every task would
dominate, measured from the worst single model. A trial that was stopped early is an estimate from
the documents that it answered: an open mark with its 95% interval, never on the front.
Worker time is merging and scoring, added up over the workers.</p></details></section>
"""


def write_html(run: Run, path: Path) -> None:
    """Writes the report as one HTML file, in one step.

    Args:
        run: Any run, finished or not.
        path: The file; it needs no network and nothing beside it.

    Raises:
        ExportError: The file cannot be written.
    """
    replace(path, page(run).encode("utf-8", "replace"))


def page(run: Run) -> str:
    """The report as HTML text."""
    answer = verdict(run)
    course, mattered, found = progress(run), effects(run), leads(run, answer)
    drawn = page_data(run, answer, course, mattered, found)
    name = printable(Path(run.path).name or run.path)
    state = "" if answer.finished else " \u00b7 unfinished"
    parts = _parts(run, answer, drawn)
    body = [
        markup.header(
            f"{name}{state}", answer.headline, answer.decision, answer.sentence, dict(facts(run))
        ),
        markup.contents({key: title for key, (title, _) in parts.items()}),
        *(html for _, html in parts.values()),
        READING,
        _footer(run),
    ]
    return markup.document(f"{answer.headline} \u00b7 {name}", body, drawn, SCRIPTS)


def _parts(run: Run, answer: Verdict, drawn: Mapping[str, object]) -> dict[str, tuple[str, str]]:
    """The sections in reading order: id to (title, HTML)."""
    made = {t.key: t for t in tables(run, answer)}
    many = len(run.searched) > 1
    any_trial = bool(_column(drawn, "trials", "number"))
    any_told = bool(_column(drawn, "progress", "number"))
    parts: dict[str, tuple[str, str]] = {}

    def add(key: str, title: str, note: str, *html: str) -> None:
        parts[key] = (title, markup.section(key, title, note, "".join(html)))

    if "scores" in made:
        _add_table(parts, made["scores"], any_trial)
    if "luck" in made:
        table = made["luck"]
        body = markup.plot("luck", table.title, "low") + markup.table_html(table, any_trial)
        chance = luck(run)  # the text report says it below the verdict
        expected = f" {printable(chance.sentence)}" if chance and chance.gain > 0 else ""
        add("luck", table.title, table.note + expected, f'<div class="beside">{body}</div>')
    if any_trial and many:
        add(
            "front",
            "Trade-off",
            "Better is up and to the right. Point at a mark to see its recipe, click to keep it; "
            "drag to zoom, double-click to see everything.",
            _controls(run),
            _explorer("front", "scores of every trial"),
            _below(made.get("front"), any_trial),
        )
    if any_told:
        add("search", "The search", *_search(many, any_trial, made.get("search")))
    if any_trial and any_told:
        note = (
            "One line per recipe: its scores, then the coefficients that explain most. Drag along "
            "an axis to keep what passes there, also above; click an axis to let go."
        )
        canvas = '<canvas id="lines" role="img" aria-label="parallel coordinates"></canvas>'
        add("parallel", "Every recipe at once", note, f'<div class="parallel">{canvas}</div>')
    for key in ("mattered", "comparison", "time", "failures"):
        if key in made:
            _add_table(parts, made[key], any_trial)
    return parts


def _search(many: bool, any_trial: bool, table: Table | None) -> tuple[str, ...]:
    """The remark and the HTML of the section on the search; with one objective, the panel too."""
    plots = markup.plot("best", "the best score so far, over the search")
    note = "Dotted: the reference points. Each dot is a trial, a triangle one below the frame."
    if many:
        plots += markup.plot("volume", "hypervolume over the search")
        note += (
            " The first plot shows the scores as one number, the second the whole front: the "
            "hypervolume is the share of all results worth having that the merges found cover."
        )
    options = {"trials": "evaluations", "time": "worker time"}
    return (
        note,
        f'<div class="controls">{markup.chooser("over", "over", options, "trials")}</div>',
        f'<div class="plots{"" if many else " one"}">{plots}</div>',
        "" if many or not any_trial else _explorer("", ""),
        _below(table, any_trial),
    )


def _column(drawn: Mapping[str, object], key: str, name: str) -> object:
    found = drawn[key]
    return found[name] if isinstance(found, Mapping) else None


def _add_table(parts: dict[str, tuple[str, str]], table: Table, pinned: bool) -> None:
    html = markup.table_html(table, pinned)
    parts[table.key] = (table.title, markup.section(table.key, table.title, table.note, html))


def _below(table: Table | None, pinned: bool) -> str:
    if table is None:
        return ""
    note = f'<p class="note">{markup.text(table.note)}</p>'
    return f"<h3>{markup.text(table.title)}</h3>{note}{markup.table_html(table, pinned)}"


def _explorer(key: str, label: str) -> str:
    """A plot beside the panel that shows one recipe."""
    plot = markup.plot(key, label, "tall") if key else ""
    only = "" if key else " only"
    return (
        f'<div class="explorer{only}">{plot}<aside id="panel" aria-label="recipe" '
        'aria-live="polite"></aside></div>'
    )


def _controls(run: Run) -> str:
    """What the trade-off shows across, up and as colour."""
    names = {str(i): o.name for i, o in enumerate(run.guiding)}
    chosen = [str(i) for i, o in enumerate(run.guiding) if o.search]
    paint = {
        "front": "Pareto front",
        **names,
        "scalar": "the one number",
        "number": "trial number",
    }
    third = chosen[2] if len(chosen) > 2 else "front"
    return (
        '<div class="controls">'
        + markup.chooser("across", "across", names, chosen[0])
        + markup.chooser("up", "up", names, chosen[1])
        + markup.chooser("paint", "colour", paint, third)
        + "</div>"
    )


def _footer(run: Run) -> str:
    parts = []
    if run.meta.get("created"):
        parts.append(f"run created {run.meta['created']}")
    versions = run.meta.get("versions")
    if isinstance(versions, Mapping):
        parts.append(", ".join(f"{k} {v}" for k, v in versions.items()))
    return markup.footer([*parts, run.path])
