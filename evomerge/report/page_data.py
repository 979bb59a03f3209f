"""What the page draws, as plain data: one entry per trial, recipes without repetition."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.choose import front, is_reference, is_single, ranked
from evomerge.compare import constraints_of, is_scored, scale_of
from evomerge.report.coefficients import Coefficients, Effect, tabulate
from evomerge.report.data import called, printable, raw, summary, table_split
from evomerge.report.facts import command_lines
from evomerge.report.leads import Lead
from evomerge.report.progress import Progress
from evomerge.run import Run
from evomerge.scale import Scale
from evomerge.trial import Objective, Trial, TrialState
from evomerge.verdict import Verdict

NUMBER = "TRIAL_NUMBER"
"""Stands for the number of a trial in the commands that the page fills in."""
AXES = 6
"""Coefficients among the parallel coordinates."""


def page_data(
    run: Run,
    answer: Verdict,
    course: Progress,
    mattered: Sequence[Effect],
    found: Sequence[Lead],
) -> dict[str, Any]:
    """Everything that the scripts of the page read.

    Args:
        run: Any run, finished or not.
        answer: Its verdict.
        course: Its progress.
        mattered: Which coefficients mattered.
        found: The leads of the finalists.

    Returns:
        Plain data. ``trials`` has columns of equal length, one entry per distinct recipe that
        was scored on the search documents, pruned ones included; ``layouts`` holds the
        coefficients of those; ``held`` what is known on other documents.
    """
    scale = scale_of(run, "search")
    trials = drawn(run, scale)
    tables = tabulate(trials)
    main = max(tables, key=lambda t: len(t.numbers)) if tables else None
    return {
        "objectives": [_objective(o) for o in run.guiding],
        "searched": [printable(o.name) for o in run.searched],
        "title": scale.title,
        "best": answer.trial.number if answer.trial else None,
        "rival": called(answer.rival) if answer.rival else None,
        "commands": command_lines(run, NUMBER),
        "trials": _trials(run, trials, scale),
        "layouts": [_layout(t) for t in tables],
        "held": _held(run),
        "progress": _progress(course),
        "levels": levels(run),
        "leads": [
            {
                "name": called(lead.trial),
                "number": lead.trial.number,
                "on": {s: [d.mean, d.low, d.high] for s, d in lead.on.items()},
            }
            for lead in found
        ],
        "axes": [{"name": e.name, "column": e.column} for e in mattered[:AXES]],
        "main": tables.index(main) if main is not None else None,
    }


def drawn(run: Run, scale: Scale) -> list[Trial]:
    """The trials that the plots show, in told order: distinct recipes with scores."""
    return [
        t
        for t in run.trials
        if t.split == "search" and t.copied_from is None and t.scores is not None
        if is_scored(t, scale.names) or t.state is TrialState.PRUNED
    ]


def levels(run: Run) -> list[tuple[str, float]]:
    """The base, the best expert and the best other reference: (name, scalarised score)."""
    scale = scale_of(run, "search")
    references = [t for t in run.complete("search") if is_reference(t)]
    found = ranked(references, scale, constraints_of(run, "search"))
    firsts: dict[str, tuple[str, float]] = {}
    for t in found:
        kind = "single" if is_single(t) and t.label != "base" else t.label if is_single(t) else ""
        value = scale.scalar(t.scores.values if t.scores else {})
        firsts.setdefault(kind, (called(t), value))
    return list(firsts.values())


def _objective(o: Objective) -> dict[str, Any]:
    return {
        "name": printable(o.name),
        "metric": printable(o.metric),
        "up": o.direction == "maximize",
        "searched": o.search,
    }


def _trials(run: Run, trials: Sequence[Trial], scale: Scale) -> dict[str, Any]:
    members = {t.number for t in front(run)}
    bounds = constraints_of(run, "search")
    values = [t.scores.values if t.scores else {} for t in trials]
    errors = [t.scores.stderr if t.scores else {} for t in trials]
    whole = [all(math.isfinite(v.get(n, math.nan)) for n in scale.names) for v in values]
    names = [o.name for o in run.guiding]
    normal = [scale.normalise(v) if w else {} for v, w in zip(values, whole, strict=True)]
    return {
        "number": [t.number for t in trials],
        "name": [called(t) for t in trials],
        "kind": [_kind(t, members) for t in trials],
        "front": [t.number in members for t in trials],
        "kept": [bounds.kept(v) for v in values],
        "recipe": [summary(t.recipe) for t in trials],
        "raw": [[rounded(raw(o, t)) for t in trials] for o in run.guiding],
        "stderr": [[rounded(e.get(n, math.nan)) for e in errors] for n in names],
        "normal": [[rounded(v.get(n, math.nan)) for v in normal] for n in names],
        "scalar": [
            rounded(scale.scalar(v)) if w else None for v, w in zip(values, whole, strict=True)
        ],
        "spread": [
            rounded(_spread(scale, t)) if w else None for t, w in zip(trials, whole, strict=True)
        ],
        "asked": [_asked(t) for t in trials],
        "rival": _rivals(run, trials, scale),
    }


def _kind(trial: Trial, members: set[int]) -> str:
    """How a trial is drawn; an estimate is neither on the front nor off it."""
    if trial.state is TrialState.PRUNED:
        return "estimate"
    if is_reference(trial):
        return "reference"
    return "front" if trial.number in members else "trial"


def _asked(trial: Trial) -> list[int] | None:
    """Documents that a pruned trial answered, and those that it would have been asked."""
    if trial.state is not TrialState.PRUNED or trial.scores is None:
        return None
    rows = [r for r in trial.scores.per_example.values() if r is not None]
    return [sum(int(np.isfinite(r).sum()) for r in rows), sum(len(r) for r in rows)]


def _spread(scale: Scale, trial: Trial) -> float:
    """Standard error of an estimate's one number, its objectives taken as independent."""
    if trial.state is not TrialState.PRUNED or trial.scores is None:
        return math.nan
    values, errors = (
        np.array([of.get(n, math.nan) for n in scale.names])
        for of in (trial.scores.values, trial.scores.stderr)
    )
    weights, _ = min(scale.terms(), key=lambda term: float(term[0] @ values + term[1]))
    return float(np.sqrt(((weights * errors) ** 2).sum()))


def _rivals(run: Run, trials: Sequence[Trial], scale: Scale) -> list[int | None]:
    """Number of the best merge or model told when a stopped trial was started.

    None for all others, and in a search for a front, where it raced against all of that.
    """
    told = [t for t in run.trials if t.split == "search" and t.kind != "final"]
    bounds = constraints_of(run, "search")
    best: list[Trial | None] = [None]
    for t in told:
        known = is_scored(t, scale.names) and t.scores and bounds.kept(t.scores.values)
        better = known and (not best[-1] or ranked([best[-1], t], scale)[0] is t)
        best.append(t if better else best[-1])

    def rival(trial: Trial) -> int | None:
        if (
            trial.state is not TrialState.PRUNED
            or trial.raced_after is None
            or run.meta.get("pareto")
        ):
            return None
        found = best[min(trial.raced_after, len(told))]
        return found.number if found else None

    return [rival(t) for t in trials]


def _layout(table: Coefficients) -> dict[str, Any]:
    r = table.layout
    return {
        "method": printable(r.method),
        "models": [printable(m.name) for m in r.models],
        "groups": [printable(g.name) for g in r.groups],
        "fixed": {printable(k): printable(v) for k, v in r.fixed.items()},
        "numbers": table.numbers,
        "columns": [[rounded(v, 5) for v in row] for row in table.columns.tolist()],
        "cells": [{"name": printable(k), "at": v.tolist()} for k, v in table.cells.items()],
    }


def _held(run: Run) -> dict[str, dict[str, list[float | None]]]:
    """Trial number to split to raw values, for what was scored on select and test."""
    found: dict[str, dict[str, list[float | None]]] = {}
    for split in ("select", table_split(run)):
        if split != "search":
            for t in run.complete(split):
                found.setdefault(str(t.number), {})[split] = [
                    rounded(raw(o, t)) for o in run.guiding
                ]
    return found


def _progress(course: Progress) -> Mapping[str, Any]:
    return {
        "number": [t.number for t in course.trials],
        "seconds": [rounded(s) for s in course.seconds],
        "best": [rounded(v) for v in course.best],
        "volume": [rounded(v) for v in course.volume],
        "before": rounded(course.volume_before),
    }


def rounded(value: float, digits: int = 6) -> float | None:
    """As many digits as a plot can show: half of the size of the page."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None
