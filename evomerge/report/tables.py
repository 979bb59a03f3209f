"""What the tables of a report say."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from evomerge.choose import (
    Verdict,
    finalists,
    front,
    is_reference,
    is_single,
    ranked,
    reason,
    verdict,
)
from evomerge.compare import (
    constraints_of,
    normalised_mean,
    paired_mean,
    scale_of,
    smallest_visible,
)
from evomerge.report.coefficients import effects
from evomerge.report.data import called, printable, raw, summary, table_split
from evomerge.report.leads import leads
from evomerge.run import Run
from evomerge.trial import SPLITS, Objective, Split, Trial, TrialState

Tone = Literal["", "good", "bad", "muted", "strong"]
BEST = 10
"""Rows of the table of the search's best trials."""
MOST = 30
"""At most this many rows of a front or of failures; the JSON form has them all."""


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


def _figures(name: str, unit: str = "") -> Column:
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
    against = (_figures("vs", called(rival)), Column("")) if rival else ()
    columns = (
        Column(""),
        _figures("mean", "normalised"),
        _figures("95% CI"),
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
        *(_figures(s, "lead") for s in splits),
        _figures("luck", "search \u2212 test"),
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
        *(_figures(printable(k), "" if k in signs else "normalised") for k in keys),
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
        _figures(scale.title, "normalised"),
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
        _figures(scale.title, "normalised"),
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
        _figures("best", "normalised mean"),
        _figures("difference"),
        _figures("95% CI"),
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


def time_table(run: Run) -> Table:
    """Where the time went."""
    spent: dict[tuple[str, str], list[Trial]] = {}
    for t in run.trials:
        if t.scores is not None and t.copied_from is None and t.scores.seconds:
            spent.setdefault((t.kind, t.split), []).append(t)
    phases = sorted({p for ts in spent.values() for t in ts if t.scores for p in t.scores.seconds})
    columns = (
        Column("what"),
        _figures("trials"),
        *(_figures(printable(p), "per trial") for p in phases),
        _figures("total"),
    )
    body = []
    for (kind, split), trials in spent.items():
        times = [t.scores.seconds for t in trials if t.scores]
        sums = [sum(_float(s.get(p, 0.0)) for s in times) for p in phases]
        means = [Cell(duration(s / len(trials))) for s in sums]
        name = f"{kind} trials" if kind != "final" else "scored again"
        cells = (
            Cell(f"{name}, {split}"),
            Cell(str(len(trials))),
            *means,
            Cell(duration(sum(t.scores.spent for t in trials if t.scores))),
        )
        body.append(Row(cells))
    note = (
        "Time of the workers, added up; the clock on the wall ran less where several worked. What "
        "a trial waited for a worker is no part of the total."
    )
    found = [t for t in run.trials if t.scores and t.copied_from is None and not t.scores.seconds]
    if found:
        note += f" {len(found)} trials took none: their scores were found in the cache folder."
    return Table("time", "Time spent", note, columns, tuple(body))


def failures_table(run: Run) -> Table:
    """What failed, and why."""
    failed = [t for t in run.trials if t.state is TrialState.FAILED]
    columns = (Column(""), Column("documents"), _figures("attempt"), Column("reason"))
    body = [
        Row(
            (
                Cell(called(t), "strong"),
                Cell(t.split),
                Cell(str(t.attempt + 1)),
                Cell(printable(reason(t)), "bad"),
            ),
            details=t.error or "",
        )
        for t in failed[:MOST]
    ]
    note = f"{len(failed)} of {len(run.trials)} trials failed; the search goes on without them."
    if len(failed) > MOST:
        note += f" The first {MOST}."
    return Table("failures", "Failures", note, columns, tuple(body))


def commands(run: Run, trial: Trial) -> tuple[str, ...]:
    """The shell lines that export a trial and verify it with stock lm_eval."""
    return command_lines(run, str(trial.number))


def command_lines(run: Run, number: str) -> tuple[str, ...]:
    """:func:`commands` of the trial of that number, or of a word that stands for one."""
    out = f"merged/trial-{number}"
    path = shlex.quote(str(run.path))
    lines = [f"evomerge export {path} --pick trial={number} --out {out}"]
    line = run.stock_command(table_split(run), out)
    if line:
        lines.append(line)
    return tuple(lines)


def progress(run: Run) -> str:
    """How far the search is, in words."""
    done = sum(t.kind == "search" and t.split == "search" for t in run.trials)
    budget = run.meta.get("n_trials")
    words = f"{done} of {budget} trials" if isinstance(budget, int) else f"{done} trials"
    ended = run.meta.get("ended") if isinstance(budget, int) and done < budget else ""
    words += f": {ended}" if ended else ""
    failed = sum(t.state is TrialState.FAILED for t in run.trials)
    pruned = sum(t.state is TrialState.PRUNED for t in run.trials)
    words += f", {len(run.running)} running" if run.running else ""
    words += f", {pruned} stopped early" if pruned else ""
    return words + (f", {failed} failed" if failed else "")


def facts(run: Run) -> list[tuple[str, str]]:
    """The run in a few (name, value) pairs; those that it does not know are left out."""
    meta = run.meta
    space = meta.get("space") if isinstance(meta.get("space"), Mapping) else {}
    models = meta.get("models") if isinstance(meta.get("models"), Mapping) else {}
    found = [("search", progress(run))]
    if meta.get("optimizer"):
        seed = f", seed {meta['seed']}" if "seed" in meta else ""
        found.append(("optimizer", f"{printable(meta['optimizer'])}{seed}"))
    if meta.get("note"):
        found.append(("", printable(meta["note"])))
    if space:
        dim = f", {space['dim']} dimensions" if "dim" in space else ""
        found.append(("search space", f"{printable(space.get('name', space.get('method')))}{dim}"))
    if models:
        experts = [_model(m) for m in models.get("experts", ())]
        base = f" on {_model(models['base'])}" if models.get("base") else ""
        found.append(("experts", ", ".join(experts) + base))
    documents = meta.get("documents")
    if isinstance(documents, Mapping) and documents:
        parts = [f"{sum(d.values()):,} {s}" for s, d in documents.items() if d]
        found.append(("documents", ", ".join(parts)))
    return found


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
    return _figures(printable(o.name), f"{printable(o.metric)} {arrow}{_bound(o)}")


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


def _model(ref: Any) -> str:
    return printable(ref.get("name", ref) if isinstance(ref, Mapping) else ref)


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


def _float(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _finite(values: Sequence[float]) -> bool:
    return all(math.isfinite(v) for v in values)
