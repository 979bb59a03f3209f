"""The report as one self-contained HTML page that works offline, light and dark."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from importlib import resources
from pathlib import Path

from evomerge import __version__
from evomerge.choose import Verdict, verdict
from evomerge.report.data import plain, printable, replace
from evomerge.report.figures import DARK, Named, figures
from evomerge.report.tables import Cell, Row, Table, facts, tables
from evomerge.run import Run

# No request leaves the page, whatever a name in it may say.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
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
and 1 are taken as given, and nothing is corrected for comparing many rows.</p></details></section>
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
    from plotly.offline import get_plotlyjs

    answer = verdict(run)
    drawn = figures(run)
    ids = {f"figure-{i}": json.loads(f.figure.to_json()) for i, f in enumerate(drawn)}
    for figure in ids.values():
        figure["layout"].pop("template", None)
    own = resources.files("evomerge.report")
    name = printable(Path(run.path).name or run.path)
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_text(answer.headline)} \u00b7 {_text(name)}</title>",
            f"<style>{(own / 'page.css').read_text('utf-8')}</style></head><body><main>",
            _header(run, answer, name),
            *_sections(run, answer, drawn),
            READING,
            _footer(run),
            "</main>",
            f'<script type="application/json" id="figures">{_json(ids)}</script>',
            f'<script type="application/json" id="dark">{_json(DARK)}</script>',
            f"<script>{get_plotlyjs()}</script>",
            f"<script>{(own / 'page.js').read_text('utf-8')}</script>",
            "</body></html>\n",
        ]
    )


def _header(run: Run, answer: Verdict, name: str) -> str:
    pairs = "".join(
        f"<div><dt>{_text(key)}</dt><dd>{_text(value)}</dd></div>" for key, value in facts(run)
    )
    state = "" if answer.finished else " \u00b7 unfinished"
    return (
        f'<header><p class="eyebrow"><b>evomerge</b> \u00b7 {_text(name)}{state}</p>'
        f'<h1 class="{answer.decision}">{_text(answer.headline)}</h1>'
        f'<p class="lede">{_text(answer.sentence)}</p><dl class="facts">{pairs}</dl></header>'
    )


def _sections(run: Run, answer: Verdict, drawn: Sequence[Named]) -> Iterable[str]:
    """Tables and figures of one key share a section."""
    made = {t.key: t for t in tables(run, answer)}
    for key in ("scores", "front", "search", "recipe", "comparison", "time", "failures"):
        plots = [(f"figure-{i}", f) for i, f in enumerate(drawn) if f.key == key]
        table = made.get(key)
        if plots:
            yield _plots(plots, close=table is None)
            if table:
                lead = f'<h3>{_text(table.title)}</h3><p class="note">{_text(table.note)}</p>'
                yield f"{lead}{_table(table)}</section>"
        elif table:
            note = f'<p class="note">{_text(table.note)}</p>' if table.note else ""
            yield f"<section><h2>{_text(table.title)}</h2>{note}{_table(table)}</section>"


def _plots(plots: Sequence[tuple[str, Named]], close: bool) -> str:
    first = plots[0][1]
    shared = len({f.note for _, f in plots}) == 1
    note = f'<p class="note">{_text(first.note)}</p>' if shared else ""
    body = "".join(
        "<figure>"
        + ("" if shared else f'<figcaption class="note">{_text(f.note)}</figcaption>')
        + f'<div class="plot" id="{i}"{_width(f)}></div></figure>'
        for i, f in plots
    )
    one = " one" if len(plots) == 1 else ""
    end = "</section>" if close else ""
    return f'<section><h2>{_text(first.title)}</h2>{note}<div class="plots{one}">{body}</div>{end}'


def _width(figure: Named) -> str:
    return f' style="max-width:{figure.width}px"' if figure.width else ""


def _table(table: Table) -> str:
    """A table; intervals become a drawn column, commands and details a row that unfolds."""
    drawn = [r.interval for r in table.rows if r.interval]
    more = any(r.commands or r.details for r in table.rows)
    heads = [
        f'<th{_class("num" if c.numeric else "")} scope="col">{_text(c.name) if c.name else ""}'
        + (f"<small>{_text(c.unit)}</small>" if c.unit else "")
        + "</th>"
        for c in table.columns
    ]
    after = next((i for i, c in enumerate(table.columns) if c.name == "95% CI"), 0) + 1
    if drawn:
        heads.insert(after, '<th scope="col" aria-hidden="true"></th>')
    if more:
        heads.append('<th scope="col"></th>')
    body = []
    for i, row in enumerate(table.rows):
        cells = [_cell(c, table.columns[j].numeric, j == 0) for j, c in enumerate(row.cells)]
        if drawn:
            cells.insert(after, f"<td>{_whisker(row, table.rows)}</td>")
        key = f"{table.key}-{i}"
        unfolds = bool(row.commands or row.details)
        if more:
            label = "traceback" if row.details else "export"
            about = f'class="more" aria-expanded="false" aria-controls="{key}"'
            button = f"<button {about}>{label}</button>" if unfolds else ""
            cells.append(f'<td class="num">{button}</td>')
        body.append(f'<tr class="hit">{"".join(cells)}</tr>')
        if unfolds:
            shown = [*row.commands, *([row.details] if row.details else [])]
            pres = "".join(f"<pre>{_lines(s)}</pre>" for s in shown)
            body.append(
                f'<tr class="more" id="{key}" hidden><td colspan="{len(heads)}">{pres}</td></tr>'
            )
    return (
        f'<div class="scroll"><table><thead><tr>{"".join(heads)}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _cell(cell: Cell, numeric: bool, head: bool) -> str:
    shown = _text(cell.text) if cell.text else ""
    if numeric:  # figures line up with a true minus
        shown = shown.replace("-", "\u2212")
    title = f' title="{_text(cell.title)}"' if cell.title else ""
    word = "word" if len(cell.text) < 16 else ""
    classes = _class("num" if numeric else "plain", cell.tone, word)
    if head:
        return f'<th scope="row"{classes}{title}>{shown}</th>'
    return f"<td{classes}{title}>{shown}</td>"


def _whisker(row: Row, rows: Sequence[Row]) -> str:
    """The interval as a line with a dot, on the scale that all rows share."""
    if row.interval is None:
        return ""
    drawn = [r.interval for r in rows if r.interval]
    low, high = min(i[0] for i in drawn), max(i[2] for i in drawn)
    width = high - low or 1.0
    a, m, b = (4 + 136 * (v - low) / width for v in row.interval)
    rival = next((r.interval for r in rows if r.interval and r.rival), None)
    line = ""
    if rival is not None:
        x = 4 + 136 * (rival[1] - low) / width
        line = f'<line class="zero" x1="{x:.1f}" x2="{x:.1f}" y1="-9" y2="29"/>'
    tone = next((c.tone for c in row.cells if c.tone in {"good", "bad"}), "")
    return (
        f'<svg class="whisker {tone}" viewBox="0 0 144 20" aria-hidden="true">{line}'
        f'<line class="bar" x1="{a:.1f}" x2="{b:.1f}" y1="10" y2="10"/>'
        f'<circle class="dot" cx="{m:.1f}" cy="10" r="3.5"/></svg>'
    )


def _footer(run: Run) -> str:
    parts = [f"evomerge {__version__}", f"written {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"]
    if run.meta.get("created"):
        parts.append(f"run created {printable(run.meta['created'])}")
    if run.meta.get("fingerprint"):
        parts.append(f"fingerprint {printable(run.meta['fingerprint'])[:12]}")
    versions = run.meta.get("versions")
    if isinstance(versions, Mapping):
        parts.append(", ".join(f"{printable(k)} {printable(v)}" for k, v in versions.items()))
    parts.append(printable(run.path))
    line = " \u00b7 ".join(_text(p) for p in parts)
    return f"<footer>{line}</footer>"


def _class(*names: str) -> str:
    used = " ".join(n for n in names if n)
    return f' class="{used}"' if used else ""


def _text(value: object) -> str:
    """Text that stays text, inside elements and inside quoted attributes."""
    return html.escape(printable(value))


def _lines(value: str) -> str:
    """Text of several lines, indentation kept."""
    lines = [(line, len(line) - len(line.lstrip(" "))) for line in value.splitlines()]
    return "\n".join(" " * n + _text(line) if line.strip() else "" for line, n in lines)


def _json(value: object) -> str:
    """JSON that no script element can be ended by."""
    dumps = partial(json.dumps, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return dumps(plain(value)).replace("<", "\\u003c").replace(">", "\\u003e")
