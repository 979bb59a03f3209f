"""HTML of the pages: text that stays text, JSON that stays inside its script, tables."""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache, partial
from importlib import resources

from evomerge import __version__
from evomerge.report.cells import Cell, Row, Table
from evomerge.report.data import plain, printable

# No request leaves the page, whatever a name in it may say.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)
INTERVALS = ("95% CI", "from worst to best")
"""Columns after which a table's intervals are drawn."""
FOLDED = 8
"""Rows of a longer table that show before somebody asks for the rest."""


def document(title: str, body: Sequence[str], data: object, scripts: Sequence[str]) -> str:
    """A whole self-contained page.

    Args:
        title: Of the window, as plain text.
        body: HTML of the page.
        data: What the scripts draw, as plain data.
        scripts: Names of files in ``web/``; they share one scope, in this order.

    Plotly, 4.8 MB of script, travels compressed and is unpacked after the first paint, so that
    the page is small and the verdict is there at once.
    """
    own = resources.files("evomerge.report") / "web"
    code = "\n".join((own / name).read_text("utf-8") for name in scripts)
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{text(title)}</title>",
            f"<style>{(own / 'page.css').read_text('utf-8')}</style></head><body><main>",
            *body,
            "</main>",
            f'<script type="application/json" id="data">{json_text(data)}</script>',
            f'<script type="application/gzip" id="plotly">{_plotly()}</script>',
            f'<script>"use strict";\n(() => {{\n{code}\n}})();</script>',
            "</body></html>\n",
        ]
    )


@cache
def _plotly() -> str:
    """plotly.js, gzipped, as base64."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 6, mtime=0)).decode()


def text(value: object) -> str:
    """Text that stays text, inside elements and inside quoted attributes."""
    return html.escape(printable(value))


def lines(value: str) -> str:
    """Text of several lines, indentation kept."""
    found = [(line, len(line) - len(line.lstrip(" "))) for line in value.splitlines()]
    return "\n".join(" " * n + text(line) if line.strip() else "" for line, n in found)


def json_text(value: object) -> str:
    """JSON that no script element can be ended by."""
    dumps = partial(json.dumps, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return dumps(plain(value)).replace("<", "\\u003c").replace(">", "\\u003e")


def header(eyebrow: str, headline: str, tone: str, lede: str, facts: Mapping[str, str]) -> str:
    """What comes first: the answer in a few words, in a sentence, and what it is about."""
    pairs = "".join(
        f"<div><dt>{text(key)}</dt><dd>{text(value)}</dd></div>" for key, value in facts.items()
    )
    return (
        f'<header><p class="eyebrow"><span><b>evomerge</b> \u00b7 {text(eyebrow)}</span>'
        '<button id="theme" type="button" aria-label="light or dark">\u25d1</button></p>'
        f'<h1 class="{tone}">{text(headline)}</h1><p class="lede">{text(lede)}</p>'
        f'<dl class="facts">{pairs}</dl></header>'
    )


def contents(sections: Mapping[str, str]) -> str:
    """Links to the sections: id to title."""
    links = "".join(f'<a href="#{key}">{text(title)}</a>' for key, title in sections.items())
    return f'<nav aria-label="sections">{links}</nav>'


def section(key: str, title: str, note: str, body: str) -> str:
    """A section with a heading, a remark and its content, which is HTML."""
    remark = f'<p class="note">{text(note)}</p>' if note else ""
    return f'<section id="{key}"><h2>{text(title)}</h2>{remark}{body}</section>'


def plot(key: str, label: str, kind: str = "") -> str:
    """The place of a plot; ``label`` says to a screen reader what it shows."""
    return f'<div class="plot {kind}" id="plot-{key}" role="img" aria-label="{text(label)}"></div>'


def chooser(key: str, label: str, options: Mapping[str, str], chosen: str) -> str:
    """A labelled drop-down list: value to what it is called."""
    items = "".join(
        f'<option value="{text(value)}"{" selected" if value == chosen else ""}>'
        f"{text(name)}</option>"
        for value, name in options.items()
    )
    return f'<label>{text(label)} <select id="{key}">{items}</select></label>'


def command(line: str, label: str) -> str:
    """A shell line, what it does, and a button that copies it."""
    button = '<button class="copy" type="button">copy</button>'
    return f'<div class="command"><p>{text(label)}{button}</p><pre>{lines(line)}</pre></div>'


def table_html(table: Table, pinned: bool = False) -> str:
    """A table; intervals become a drawn column, commands and details a row that unfolds.

    Args:
        table: What it says.
        pinned: Whether the page has a recipe panel that the rows can fill.
    """
    drawn = any(r.interval for r in table.rows)
    more = any(r.commands or r.details for r in table.rows)
    folded = len(table.rows) > FOLDED + 2
    heads = [
        f'<th{_class("num" if c.numeric else "")} scope="col">{_breakable(c.name)}'
        + (f"<small>{_breakable(c.unit)}</small>" if c.unit else "")
        + "</th>"
        for c in table.columns
    ]
    after = 1 + next((i for i, c in enumerate(table.columns) if c.name in INTERVALS), 0)
    if drawn:
        heads.insert(after, '<th scope="col" aria-hidden="true"></th>')
    if more:
        heads.append('<th scope="col"></th>')
    body = []
    for i, row in enumerate(table.rows):
        cells = [
            _cell(c, table.columns[j].numeric, j == 0, row.pick if pinned else "")
            for j, c in enumerate(row.cells)
        ]
        if drawn:
            cells.insert(after, f"<td>{_whisker(row, table.rows)}</td>")
        if more:
            cells.append(_opener(row, f"{table.key}-{i}"))
        rest = " rest" if folded and i >= FOLDED else ""
        body.append(f'<tr class="hit{rest}">{"".join(cells)}</tr>')
        body.append(_unfolded(row, f"{table.key}-{i}", len(heads)))
    button = (
        f'<button class="unfold" type="button">all {len(table.rows)} rows</button>'
        if folded
        else ""
    )
    return (
        f'<div class="scroll"><table{_class("folded" if folded else "", "opens" if more else "")}>'
        f"<thead><tr>{''.join(heads)}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>{button}"
    )


def _breakable(name: str) -> str:
    """A heading that may be broken after an underscore."""
    held = name.replace(" \u2191", "\u00a0\u2191").replace(" \u2193", "\u00a0\u2193")
    return text(held).replace("_", "_<wbr>") if name else ""


def _opener(row: Row, key: str) -> str:
    """The cell with the button that shows what :func:`_unfolded` holds."""
    if not (row.commands or row.details):
        return "<td></td>"
    label = "traceback" if row.details else "export"
    about = f'class="more" type="button" aria-expanded="false" aria-controls="{key}"'
    return f'<td class="num"><button {about}>{label}</button></td>'


def _unfolded(row: Row, key: str, width: int) -> str:
    """The row below a row: its commands and details; nothing where it has none."""
    labels = ("export", "verify with stock lm_eval")
    pres = "".join(command(s, label) for s, label in zip(row.commands, labels, strict=False))
    pres += f"<pre>{lines(row.details)}</pre>" if row.details else ""
    shown = f'<tr class="more" id="{key}" hidden><td colspan="{width}">{pres}</td></tr>'
    return shown if pres else ""


def _cell(cell: Cell, numeric: bool, head: bool, pick: str) -> str:
    shown = text(cell.text) if cell.text else ""
    if numeric:  # figures line up with a true minus
        shown = shown.replace("-", "\u2212")
    title = f' title="{text(cell.title)}"' if cell.title else ""
    word = "word" if len(cell.text) < 16 else ""
    bar = "bar" if cell.fill else ""
    classes = _class("num" if numeric else "plain", cell.tone, word, bar)
    style = f' style="--fill:{cell.fill:.3f}"' if cell.fill else ""
    if head and pick:
        number = pick.removeprefix("trial=")
        shown = f'<button class="pin" type="button" data-pin="{text(number)}">{shown}</button>'
    if head:
        return f'<th scope="row"{classes}{title}>{shown}</th>'
    return f"<td{classes}{title}{style}>{shown}</td>"


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


def footer(parts: Sequence[object]) -> str:
    """Where a page comes from."""
    written = f"written {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"
    found = [f"evomerge {__version__}", written, *parts, "plots by plotly.js (MIT license)"]
    line = " \u00b7 ".join(text(p) for p in found)
    return f"<footer>{line}</footer>"


def _class(*names: str) -> str:
    used = " ".join(n for n in names if n)
    return f' class="{used}"' if used else ""
