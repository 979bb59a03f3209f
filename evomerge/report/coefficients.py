"""The coefficients of many recipes as a table, and which of them mattered.

Recipes of one search differ in few numbers: a coefficient that several layer groups or experts
share is one column here, not many.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from evomerge.compare import is_scored, scale_of
from evomerge.recipe import Recipe
from evomerge.report.data import printable
from evomerge.run import Run
from evomerge.scale import Scale
from evomerge.trial import Trial

ENOUGH = 8
"""Trials below which nothing is said about what mattered: a parabola has three parameters."""
CHANCE = 0.05
"""Chance, over all coefficients and objectives together, of one false claim (Bonferroni)."""

IN_STEP = 0.9999
"""Correlation above which two coefficients are one axis of the search seen twice."""

Floats = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Coefficients:
    """The coefficients of recipes that have one layout.

    Attributes:
        layout: A recipe with the method, models, groups and parameters of all of them.
        numbers: The n trial numbers.
        columns: (n, c) what differs, each distinct column once.
        cells: Parameter to an int matrix (G, K) or (G, 1): which column each coefficient is.
    """

    layout: Recipe
    numbers: list[int]
    columns: Floats
    cells: dict[str, npt.NDArray[np.int64]]


@dataclasses.dataclass(frozen=True)
class Effect:
    """How far one coefficient, taken alone, explains the scores of a search.

    Attributes:
        name: What it is, for people; "+3 alike" where three more are straight lines of it.
        column: Its column in :class:`Coefficients`.
        share: Objective (and the scalarised score) to the share of the variance over the search
            trials that a parabola in this coefficient explains, adjusted for its freedom, in
            [0, 1].
        best_at: The same keys to the value, within those tried, where the parabola is best.
        clear: The keys where chance is no explanation (F test, Bonferroni-corrected).
    """

    name: str
    column: int
    share: dict[str, float]
    best_at: dict[str, float]
    clear: frozenset[str]


def tabulate(trials: Sequence[Trial]) -> list[Coefficients]:
    """Trials grouped by the layout of their recipes, in order of first appearance."""
    found: dict[tuple[object, ...], list[Trial]] = {}
    for t in trials:
        r = t.recipe
        shapes = tuple((k, v.shape) for k, v in r.coefficients.items())
        groups = tuple(g.name for g in r.groups)
        found.setdefault((r.method, tuple(m.name for m in r.models), groups, shapes), []).append(t)
    return [_table(group) for group in found.values()]


def _table(trials: list[Trial]) -> Coefficients:
    layout = trials[0].recipe
    shapes = {k: v.shape for k, v in layout.coefficients.items()}
    flat: list[Floats] = [
        np.concatenate([np.zeros(0), *(t.recipe.coefficients[k].ravel() for k in shapes)])
        for t in trials
    ]
    values = np.array(flat).reshape(len(trials), -1)
    first: dict[bytes, int] = {}
    kept: list[int] = []
    where = []
    for j, column in enumerate(np.ascontiguousarray(values.T)):
        key = column.tobytes()
        if key not in first:
            first[key] = len(kept)
            kept.append(j)
        where.append(first[key])
    cells, at = {}, 0
    for k, shape in shapes.items():
        size = int(np.prod(shape))
        cells[k] = np.array(where[at : at + size], dtype=np.int64).reshape(shape)
        at += size
    return Coefficients(layout, [t.number for t in trials], values[:, kept], cells)


def called(table: Coefficients, column: int) -> str:
    """A column in words: parameter, layer groups and expert."""
    for parameter, cells in table.cells.items():
        rows, experts = np.nonzero(cells == column)
        if not len(rows):
            continue
        groups = list(dict.fromkeys(rows.tolist()))
        names = [printable(table.layout.groups[g].name) for g in groups]
        where = names[0] if len(names) == 1 else f"{names[0]} \u2026 {names[-1]}"
        if len(groups) == len(table.layout.groups):
            where = "all layers" if len(groups) > 1 else ""
        who = list(dict.fromkeys(experts.tolist()))
        models = [printable(table.layout.models[k].name) for k in who]
        shared = len(who) == len(table.layout.models) or cells.shape[1] == 1
        parts = [where, "" if shared and len(table.layout.models) > 1 else " + ".join(models)]
        return " \u00b7 ".join([printable(parameter), *(p for p in parts if p)])
    return f"coefficient {column}"


def effects(run: Run) -> list[Effect]:
    """Which coefficients mattered, the most explaining first; none before enough was tried.

    Each is fitted alone, by least squares with a parabola, to every objective and to the
    scalarised score over the COMPLETE search trials. Where a search has moved its coefficients
    together, one can borrow the effect of another.
    """
    scale = scale_of(run, "search")
    trials = [
        t
        for t in run.complete("search")
        if t.kind == "search" and t.copied_from is None and is_scored(t, scale.names)
    ]
    tables = tabulate(trials)
    if not tables:
        return []
    table = max(tables, key=lambda c: len(c.numbers))
    chosen = set(table.numbers)
    scored = [t for t in trials if t.number in chosen]
    if len(scored) < ENOUGH:
        return []
    varies, followers = _apart(table.columns)
    if not len(varies):
        return []
    names, Y = _scores(scored, scale)
    share, best, chance = _parabolas(table.columns[:, varies], Y)
    limit = CHANCE / share.size
    made = [
        Effect(
            called(table, int(c)) + (f" (+{followers[i]} alike)" if followers[i] else ""),
            int(c),
            dict(zip(names, share[i].tolist(), strict=True)),
            dict(zip(names, best[i].tolist(), strict=True)),
            frozenset(n for n, p in zip(names, chance[i], strict=True) if p < limit),
        )
        for i, c in enumerate(varies)
    ]
    return sorted(made, key=lambda e: -max(e.share.values()))


def _apart(columns: Floats) -> tuple[npt.NDArray[np.int64], list[int]]:
    """Columns that vary, without those that are a straight line of an earlier one (a profile).

    Returns:
        (v,) their indices, and how many columns each stands for beside itself.
    """
    varies = np.flatnonzero(np.ptp(columns, axis=0) > 1e-9)
    unit = columns[:, varies] - columns[:, varies].mean(axis=0)
    unit /= np.linalg.norm(unit, axis=0)
    kept: list[int] = []
    followers: list[int] = []
    for j in range(len(varies)):
        alike = np.abs(unit[:, kept].T @ unit[:, j]) if kept else np.zeros(0)
        if len(alike) and alike.max() > IN_STEP:
            followers[int(alike.argmax())] += 1
        else:
            kept.append(j)
            followers.append(0)
    return varies[kept], followers


def _scores(trials: list[Trial], scale: Scale) -> tuple[list[str], Floats]:
    """Names, and (n, m + 1) normalised scores with the scalarised one last."""
    rows = []
    for t in trials:
        values = t.scores.values if t.scores else {}
        rows.append([*scale.normalise(values).values(), scale.scalar(values)])
    return [*scale.names, scale.title], np.array(rows, dtype=np.float64)


def _parabolas(X: Floats, Y: Floats) -> tuple[Floats, Floats, Floats]:
    """Each column of X (n, c) against each of Y (n, m): adjusted R2, optimum, p; all (c, m)."""
    from scipy.special import fdtrc

    n = len(X)
    half = np.ptp(X, axis=0) / 2
    u = (X - X.min(axis=0)) / half - 1  # to [-1, 1], where u and u^2 differ most
    first = u - u.mean(axis=0)
    first /= np.linalg.norm(first, axis=0)
    second = u**2 - (u**2).mean(axis=0)
    second -= (first * second).sum(axis=0) * first
    size = np.linalg.norm(second, axis=0)
    curved = size > 1e-6 * math.sqrt(n)  # a switch has two values and no curvature
    second = np.where(curved, second / np.where(curved, size, 1.0), 0.0)
    centred = Y - Y.mean(axis=0)
    total = (centred**2).sum(axis=0)
    a, b = first.T @ centred, second.T @ centred
    r2 = np.minimum((a**2 + b**2) / np.where(total > 0, total, 1.0), 1.0)
    freedom = np.where(curved, 2, 1)[:, None]
    left = n - 1 - freedom
    adjusted = np.clip(1 - (1 - r2) * (n - 1) / left, 0.0, 1.0)
    f = r2 / freedom / np.maximum((1 - r2) / left, 1e-300)
    chance = np.asarray(fdtrc(freedom, left, f), dtype=np.float64)
    fitted = np.einsum("nc,cm->ncm", first, a) + np.einsum("nc,cm->ncm", second, b)
    best = X[fitted.argmax(axis=0), np.arange(X.shape[1])[:, None]]
    return adjusted, best, chance
