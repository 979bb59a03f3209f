"""What the tables of a comparison of runs say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from evomerge.report.cells import Cell, Column, Row, Table, Tone, duration, number, span
from evomerge.report.data import plain, printable
from evomerge.report.facts import commands
from evomerge.report.leads import leads
from evomerge.report.many import Comparison, Contender, median, paired_seeds
from evomerge.run import Run
from evomerge.verdict import Verdict, verdict


def headline(c: Comparison) -> tuple[str, str, str]:
    """The answer in a few words, its tone, and a sentence with the numbers."""
    first = c.contenders[0]
    best = median(first.best(c.budget))
    seeds = f"{len(first.runs)} seed{'s' * (len(first.runs) > 1)}"
    lead = f"{first.name} reaches a median {c.scale.title} normalised score of {number(best)}"
    sentence = f"After {c.budget} trials, {lead} over {seeds}"
    if len(c.contenders) == 1:
        return f"{first.name}: {number(best)}", "none", f"{sentence}, {_range(first, c.budget)}."
    second = c.contenders[1]
    gap, ahead = paired_seeds(first, second, c.budget)
    sentence += f"; the next, {second.name}, {number(median(second.best(c.budget)))}"
    if gap.n:
        sentence += f". Seed by seed the difference is {number(gap.mean, sign=True)} on average, "
        sentence += f"above zero in {ahead} of {gap.n}"
    if gap.better:
        return f"{first.name} is ahead", "merge", f"{sentence}: clear at 95%."
    why = "too few seeds to tell" if gap.n < 3 else "within what seeds alone can do"
    return "No clear winner", "unclear", f"{sentence}: {why}."


def contenders_table(c: Comparison) -> Table:
    """Every contender at the equal budget."""
    volume = any(math.isfinite(v) for one in c.contenders for v in one.volume(c.budget))
    first = c.contenders[0]
    columns = (
        Column(""),
        Column("runs", "", numeric=True),
        Column("best", f"after {c.budget} trials", numeric=True),
        Column("from worst to best", "", numeric=True),
        Column("best", f"in {duration(c.seconds)}", numeric=True),
        *([Column("hypervolume", f"after {c.budget} trials", numeric=True)] if volume else []),
        Column(f"vs {first.name}", "paired by seed", numeric=True),
        Column(""),
    )
    body = []
    for one in c.contenders:
        values = one.best(c.budget)
        known = [v for v in values if math.isfinite(v)]
        cells = [
            Cell(one.name, "strong"),
            Cell(str(len(one.runs))),
            Cell(number(median(values)), "strong"),
            Cell(_range(one, c.budget), "muted"),
            Cell(number(median(one.best_in(c.seconds)))),
        ]
        if volume:
            cells.append(Cell(_share(median(one.volume(c.budget)))))
        cells += _versus(one, first, c.budget)
        interval = (min(known), median(values), max(known)) if len(known) > 1 else None
        body.append(Row(tuple(cells), interval=interval, rival=one is first))
    note = (
        "Medians over the seeds, all at the budget that every run has spent; normalised against "
        "the best expert of all runs. Worker time is merging and scoring."
    )
    return Table("contenders", "At equal budget", note, columns, tuple(body))


def runs_table(c: Comparison) -> Table:
    """Every run: what it found, and what its own report says."""
    columns = (
        Column("run"),
        Column("what"),
        Column("seed", "", numeric=True),
        Column("trials", "", numeric=True),
        Column("best", c.scale.title, numeric=True),
        Column("lead on test", "over the best single model", numeric=True),
        Column("verdict"),
    )
    body = []
    for one in c.contenders:
        for run, course in zip(one.runs, one.courses, strict=True):
            answer = verdict(run)
            gap = answer.differences[0][1] if answer.differences else None
            shown = "\u2013"
            if gap is not None and answer.split == "test":
                shown = f"{gap.mean:+.3f} \u00b1{number(gap.high - gap.mean)}"
            cells = (
                Cell(printable(run.path.name), "strong", printable(run.path)),
                Cell(one.name, "muted"),
                Cell(str(run.meta.get("seed", ""))),
                Cell(str(len(course.trials))),
                Cell(number(course.best[-1])),
                Cell(shown),
                Cell(printable(answer.headline), _tone(answer)),
            )
            lines = commands(run, answer.trial) if answer.trial else ()
            body.append(Row(cells, "", lines))
    note = "The commands export each run's best merge; `evomerge report RUN` tells more about one."
    return Table("runs", "Every run", note, columns, tuple(body))


def to_json(c: Comparison) -> dict[str, Any]:
    """The comparison as plain data that strict JSON can hold."""
    words, _, sentence = headline(c)
    made = []
    for one in c.contenders:
        gap, ahead = paired_seeds(one, c.contenders[0], c.budget)
        made.append(
            {
                "name": one.name,
                "best": one.best(c.budget),
                "best_in_seconds": one.best_in(c.seconds),
                "hypervolume": one.volume(c.budget),
                "median": median(one.best(c.budget)),
                "versus_first": {"mean": gap.mean, "low": gap.low, "high": gap.high, "n": gap.n},
                "ahead_of_first": ahead,
                "runs": [_run(r, p) for r, p in zip(one.runs, one.courses, strict=True)],
            }
        )
    data = {
        "verdict": {"headline": words, "sentence": sentence},
        "budget": c.budget,
        "seconds": c.seconds,
        "contenders": made,
    }
    cleaned = plain(data)
    assert isinstance(cleaned, dict)  # noqa: S101  # for the type checker
    return cleaned


def _run(run: Run, course: Any) -> dict[str, Any]:
    answer = verdict(run)
    found = leads(run, answer)
    return {
        "path": run.path,
        "seed": run.meta.get("seed"),
        "headline": answer.headline,
        "trial": answer.trial.number if answer.trial else None,
        "best": course.best,
        "hypervolume": course.volume,
        "seconds": course.seconds,
        "luck": [{"number": lead.trial.number, "luck": lead.luck} for lead in found],
    }


def _versus(one: Contender, first: Contender, budget: int) -> Sequence[Cell]:
    if one is first:
        return [Cell(""), Cell("to beat", "muted")]
    gap, ahead = paired_seeds(one, first, budget)
    if not gap.n:
        return [Cell("\u2013"), Cell("no seed in common", "muted")]
    shown = number(gap.mean, sign=True)
    if math.isfinite(gap.low):
        shown += f" \u00b1{number(gap.high - gap.mean)}"
    word = "better" if gap.better else "worse" if gap.worse else "cannot tell"
    title = f"ahead in {ahead} of {gap.n} seeds"
    tone: Tone = "bad" if gap.worse else "good" if gap.better else "muted"
    return [Cell(shown, tone, title), Cell(word, tone, title)]


def _range(one: Contender, budget: int) -> str:
    known = [v for v in one.best(budget) if math.isfinite(v)]
    return span(min(known), max(known)) if known else "\u2013"


def _share(value: float) -> str:
    return f"{value:.1%}" if math.isfinite(value) else "\u2013"


def _tone(answer: Verdict) -> Tone:
    if answer.decision == "merge":
        return "good"
    return "bad" if answer.decision == "keep" else "muted"
