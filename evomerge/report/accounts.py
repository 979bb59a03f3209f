"""The tables of what a run cost and of what failed."""

from __future__ import annotations

from evomerge.choose import reason
from evomerge.report.cells import Cell, Column, Row, Table, duration, figures
from evomerge.report.data import called, printable
from evomerge.run import Run
from evomerge.trial import Trial, TrialState

MOST = 30
"""At most this many rows of failures; the JSON form has them all."""


def time_table(run: Run) -> Table:
    """Where the time went."""
    spent: dict[tuple[str, str], list[Trial]] = {}
    for t in run.trials:
        if t.scores is not None and t.copied_from is None and t.scores.seconds:
            spent.setdefault((t.kind, t.split), []).append(t)
    phases = sorted({p for ts in spent.values() for t in ts if t.scores for p in t.scores.seconds})
    columns = (
        Column("what"),
        figures("trials"),
        *(figures(printable(p), "per trial") for p in phases),
        figures("total"),
    )
    body = []
    for (kind, split), trials in spent.items():
        times = [t.scores.seconds for t in trials if t.scores]
        sums = [sum(float(s.get(p, 0.0)) for s in times) for p in phases]
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
    columns = (Column(""), Column("documents"), figures("attempt"), Column("reason"))
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
