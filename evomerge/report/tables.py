"""What the tables of a report say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from evomerge.choose import finalists, front, is_reference, is_single, ranked
from evomerge.compare import (
    constraints_of,
    normalised_mean,
    paired_mean,
    scale_of,
    smallest_visible,
)
from evomerge.report.accounts import failures_table, time_table
from evomerge.report.cells import Cell, Column, Row, Table, Tone, figures, number, span
from evomerge.report.coefficients import effects
from evomerge.report.data import called, printable, raw, summary, table_split
from evomerge.report.facts import commands
from evomerge.report.leads import leads
from evomerge.run import Run
from evomerge.trial import SPLITS, Objective, Split, Trial
from evomerge.verdict import Verdict, verdict

BEST = 10
"""Rows of the table of the search's best trials."""
MOST = 30
"""At most this many rows of a front; the JSON form has them all."""


def tables(run: Run, answer: Verdict | None = None) -> list[Table]:
    """Every table of the report that has something to say, in reading order."""
    answer = answer or verdict(run)
    made = [
        scores_table(run, answer),
        luck_table(run, answer),
        front_table(run),
        search_table(run),
        mattered_table(run),
        comparison_table(run),
        time_table(run),
        failures_table(run),
    ]
    return [t for t in made if t.rows]


def scores_table(run: Run, answer: Verdict) -> Table:
    """Reference points and finalists, on the test documents where there are any."""
    split = table_split(run)
    scale = scale_of(run, split)
    trials = run.complete(split)
    if split == "search":
        chosen = {t.number for t in finalists(run)}
        trials = [t for t in trials if is_reference(t) or t.number in chosen]
    rows = ranked(trials, scale, constraints_of(run, split))
    rival = next((t for t in rows if is_single(t)), None)
    rival = answer.rival if answer.rival is not None and answer.split == split else rival
    shown = run.objectives if split == "test" else run.guiding
    against = (figures("vs", called(rival)), Column("")) if rival else ()
    columns = (
        Column(""),
        figures("mean", "normalised"),
        figures("95% CI"),
        *against,
        *(_objective_column(o) for o in shown),
    )
    body = []
    for trial in rows:
        score = normalised_mean(trial, scale)
        picked = answer.trial is not None and trial.number == answer.trial.number
        strong = picked or not is_reference(trial)
        cells = [
            Cell(called(trial), "strong" if strong else "muted", summary(trial.recipe)),
            Cell(number(score.mean), "strong"),
            Cell(span(score.low, score.high), "muted"),
        ]
        if rival is not None:
            cells += _against(trial, rival, run, split)
        cells += [_raw_cell(o, trial, run) for o in shown]
        interval = (score.low, score.mean, score.high)
        body.append(
            Row(
                tuple(cells),
                f"trial={trial.number}",
                commands(run, trial),
                interval if _finite(interval) else None,
                rival=trial is rival,
            )
        )
    return Table("scores", _scores_title(split), _scores_note(run, split), columns, tuple(body))


def luck_table(run: Run, answer: Verdict) -> Table:
    """How much of each finalist's lead over the best single model held on unseen documents."""
    found = leads(run, answer)
    splits = [s for s in SPLITS if any(s in lead.on for lead in found)]
    columns = (
        Column(""),
        *(figures(s, "lead") for s in splits),
        figures("luck", "search \u2212 test"),
    )
    body = []
    for lead in found:
        cells = [Cell(called(lead.trial), "strong")]
        for s in splits:
            d = lead.on.get(s)
            tone: Tone = "good" if d and d.better else "bad" if d and d.worse else ""
            title = f"95% CI {span(d.low, d.high)}, {d.n} paired documents" if d else ""
            cells.append(Cell(number(d.mean, sign=True) if d else "\u2013", tone, title))
        cells.append(Cell(number(lead.luck, sign=True), "muted"))
        body.append(Row(tuple(cells), f"trial={lead.trial.number}"))
    note = ""
    if found and answer.rival is not None:
        mean = sum(lead.luck for lead in found) / len(found)
        note = (
            f"The lead over {called(answer.rival)} in mean normalised score. A search picks what "
            "its own documents happen to favour; new documents take that part back: here "
            f"{number(mean, sign=True)} on average over {len(found)} merges."
        )
    return Table("luck", "How much was luck", note, columns, tuple(body))


def mattered_table(run: Run) -> Table:
    """Which coefficients explain the scores."""
    found = effects(run)
    keys = list(found[0].share) if found else []
    signs = {o.name: o for o in run.searched}
    columns = (
        Column("coefficient"),
        *(figures(printable(k), "" if k in signs else "normalised") for k in keys),
    )
    body = []
    for e in found[:MOST]:
        cells = [Cell(e.name, "strong" if e.clear else "muted")]
        for k in keys:
            clear = k in e.clear
            shown = f"{e.share[k]:.0%}" + (f"  best at {e.best_at[k]:.2f}" if clear else "")
            title = "" if clear else "chance is explanation enough"
            cells.append(Cell(shown, "" if clear else "muted", title, e.share[k]))
        body.append(Row(tuple(cells)))
    note = (
        "The share of the differences between the search's trials that each coefficient explains "
        "alone, by a parabola, and where that is best among what was tried. Pale: chance is "
        'explanation enough. "+3 alike": three more coefficients that rose and fell with it, so '
        "that they share its effect."
    )
    if len(found) > MOST:
        note += f" The first {MOST} of {len(found)}."
    return Table("mattered", "What mattered", note, columns, tuple(body))


def search_table(run: Run) -> Table:
    """The best trials of the search, on the documents that the search saw."""
    scale = scale_of(run, "search")
    trials = [
        t
        for t in run.complete("search")
        if t.kind == "search" and t.copied_from is None and not is_reference(t)
    ]
    columns = (
        Column(""),
        figures(scale.title, "normalised"),
        *(_objective_column(o) for o in run.guiding),
        Column("recipe", "mean over the layer groups"),
    )
    best = ranked(trials, scale, constraints_of(run, "search"))
    body = [_search_row(run, t, scale.scalar(t.scores.values)) for t in best[:BEST] if t.scores]
    note = "Scores on the documents that the search optimised: they flatter the winner."
    if len(best) > BEST:
        note += f" The best {BEST} of {len(best)}."
    return Table("search", "Best trials of the search", note, columns, tuple(body))


def front_table(run: Run) -> Table:
    """The Pareto front; no rows with a single objective."""
    scale = scale_of(run, "search")
    columns = (
        Column(""),
        figures(scale.title, "normalised"),
        *(_objective_column(o) for o in run.guiding),
        Column("recipe", "mean over the layer groups"),
    )
    members = front(run) if len(run.searched) > 1 else []
    first = run.searched[0].name if members else ""
    members.sort(key=lambda t: -(t.scores.values[first] if t.scores else 0))
    body = [_search_row(run, t, scale.scalar(t.scores.values)) for t in members[:MOST] if t.scores]
    note = "Nothing in this run is better on one of these without being worse on another."
    if len(members) > MOST:
        note += f" {MOST} of {len(members)}; `evomerge report --json` has them all."
    return Table("front", "Pareto front", note, columns, tuple(body))


def comparison_table(run: Run) -> Table:
    """Other runs beside this one, where ``meta["comparison"]`` names some."""
    columns = (
        Column("run"),
        figures("best", "normalised mean"),
        figures("difference"),
        figures("95% CI"),
        Column("where"),
    )
    entries = run.meta.get("comparison") or ()
    body = []
    for entry in entries if isinstance(entries, Sequence) else ():
        if not isinstance(entry, Mapping):
            continue
        best = entry.get("best", entry.get("mean", entry.get("best mean")))
        low, high = _float(entry.get("low")), _float(entry.get("high"))
        tone: Tone = "good" if low > 0 else "bad" if high < 0 else ""
        body.append(
            Row(
                (
                    Cell(printable(entry.get("title", "")), "strong"),
                    Cell(number(_float(best))),
                    Cell(number(_float(entry.get("difference")), sign=True), tone),
                    Cell(span(low, high), "muted"),
                    Cell(printable(entry.get("run_path", "")), "muted"),
                )
            )
        )
    note = "Best mean normalised score of each run, and its difference from this one."
    return Table("comparison", "Beside other runs", note, columns, tuple(body))


def _search_row(run: Run, trial: Trial, mean: float) -> Row:
    cells = (
        Cell(called(trial), "muted" if is_reference(trial) else "strong"),
        Cell(number(mean), "strong"),
        *(_raw_cell(o, trial, run) for o in run.guiding),
        Cell(summary(trial.recipe), "muted"),
    )
    return Row(cells, f"trial={trial.number}", commands(run, trial))


def _against(trial: Trial, rival: Trial, run: Run, split: Split) -> list[Cell]:
    """The paired difference from the best single model, in figures and in a word."""
    if trial is rival:
        return [Cell(""), Cell("to beat", "muted")]
    d = paired_mean(trial, rival, scale_of(run, split))
    word = "better" if d.better else "worse" if d.worse else "cannot tell"
    tone: Tone = "good" if d.better else "bad" if d.worse else "muted"
    if math.isnan(d.stderr):
        word = "not known"
    title = f"95% CI {span(d.low, d.high)}, z = {number(d.z)}, {d.n} paired documents"
    half = d.high - d.mean
    shown = number(d.mean, sign=True)
    if 0 < half < 0.002:
        shown = f"{d.mean:+.4f} ±{half:.4f}"
    elif not math.isnan(half):
        shown += f" ±{number(half)}"
    return [Cell(shown, tone, title), Cell(word, tone, title)]


def _scores_title(split: Split) -> str:
    return "On the test documents" if split == "test" else "References and finalists so far"


def _scores_note(run: Run, split: Split) -> str:
    note = (
        "Neither the search nor the choice of finalists saw these documents."
        if split == "test"
        else "On the documents that the search optimises; nothing was scored on test yet."
    )
    beside = [printable(o.name) for o in run.objectives if not o.guides]
    if beside and split == "test":
        note += f" Reported beside, not searched: {', '.join(beside)}."
    visible = smallest_visible(run, split=split)
    if math.isfinite(visible):
        note += f" Differences in the mean below about {visible:.2g} cannot be told from noise."
    return note


def _objective_column(o: Objective) -> Column:
    arrow = "\u2191" if o.direction == "maximize" else "\u2193"
    return figures(printable(o.name), f"{printable(o.metric)} {arrow}{_bound(o)}")


def _bound(o: Objective) -> str:
    """The bound of an objective as a heading says it."""
    if o.bound is None:
        return ""
    value, normalised = o.bound_value
    shown = f"{value:.0%} normalised" if normalised else f"{value:g}"
    return f" {chr(0x2265) if o.direction == 'maximize' else chr(0x2264)} {shown}"


def _raw_cell(o: Objective, trial: Trial, run: Run) -> Cell:
    stderr = trial.scores.stderr.get(o.name, math.nan) if trial.scores else math.nan
    title = f"standard error {number(stderr)}" if math.isfinite(stderr) else ""
    tone: Tone = "" if o.search else "muted"
    values = trial.scores.values if trial.scores else {}
    if o.bound is not None and o.name in constraints_of(run, trial.split).broken(values):
        tone, title = "bad", ". ".join(filter(None, ("breaks its bound", title)))
    return Cell(number(raw(o, trial)), tone, title)


def _float(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _finite(values: Sequence[float]) -> bool:
    return all(math.isfinite(v) for v in values)
