"""How a search went on: the best so far and the hypervolume, over evaluations and over time."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from evomerge import pareto
from evomerge.choose import is_reference, is_single
from evomerge.compare import constraints_of, is_scored, scale_of
from evomerge.constraints import Constraints
from evomerge.run import Run
from evomerge.scale import Scale
from evomerge.trial import Trial, TrialState

MOST_OBJECTIVES = 6
"""No hypervolume above this many objectives: its cost grows too fast for a report."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """A search, one entry per search trial told, failed and pruned ones included.

    Attributes:
        trials: The n search trials in told order.
        seconds: (n,) time of the workers up to and with this trial: merging and scoring, added
            up over the workers. It neither counts pauses between two sittings nor depends on how
            many workers there were.
        scalar: (n,) scalarised normalised score; NaN where the trial is not COMPLETE.
        best: (n,) best ``scalar`` so far that keeps every bound; NaN before there is one.
        volume: (n,) :func:`volumes` of everything found so far, reference points included; empty
            with one objective or more than :data:`MOST_OBJECTIVES`.
        volume_before: The same of the reference points alone; NaN where ``volume`` is empty.
    """

    trials: list[Trial]
    seconds: list[float]
    scalar: list[float]
    best: list[float]
    volume: list[float]
    volume_before: float = math.nan


def progress(run: Run, scale: Scale | None = None) -> Progress:
    """The progress of a run; empty before the first search trial was told.

    Args:
        run: Any run, finished or not.
        scale: How values are normalised; by default the run's own scale.
    """
    scale = scale or scale_of(run, "search")
    bounds = constraints_of(run, "search")
    told = [t for t in run.trials if t.kind == "search" and t.split == "search"]
    spent, scalar, kept = [], [], []
    for t in told:
        scored = is_scored(t, scale.names) and t.scores is not None
        values = t.scores.values if t.scores else {}
        spent.append(0.0 if t.copied_from is not None else seconds(t))
        scalar.append(scale.scalar(values) if scored else math.nan)
        kept.append(scalar[-1] if scored and bounds.kept(values) else math.nan)
    best = np.fmax.accumulate(np.array(kept, dtype=np.float64)).tolist() if told else []
    volume, before = volumes(run, told, scale, bounds)
    return Progress(told, np.cumsum(spent).tolist(), scalar, best, volume, before)


def seconds(trial: Trial) -> float:
    """What a worker spent on a trial, as far as it was recorded."""
    return trial.scores.spent if trial.scores else 0.0


def volumes(
    run: Run, told: list[Trial], scale: Scale, bounds: Constraints
) -> tuple[list[float], float]:
    """The hypervolume after every trial told, and that of the reference points alone.

    It is measured in normalised scores from the worst single model per objective, as a share of
    the box between that point and 1 everywhere: a merge as good as the best expert of every task
    reaches 1. What misses a bound adds nothing.

    Returns:
        (n,) volumes that never fall, and where they start; empty and NaN where they have no
        meaning (one objective, too many, no single model scored).
    """
    references = [t for t in run.complete("search") if is_reference(t) and t.kind == "reference"]
    singles = _points([t for t in references if is_single(t)], scale, Constraints.none())
    m = len(scale.names)
    if not 2 <= m <= MOST_OBJECTIVES or not len(singles):
        return [], math.nan
    corner = singles.min(axis=0)
    box = float(np.prod(np.where(corner < 1, 1 - corner, 1.0)))
    found = _points(references, scale, bounds)
    found = found[pareto.non_dominated(found)] if len(found) else found
    before = pareto.hypervolume(found, corner) / box
    volume, now = [], before
    for t in told:
        new = _points([t], scale, bounds)
        if len(new) and not (found >= new).all(axis=1).any() and (new > corner).all():
            found = np.vstack([found[~(new >= found).all(axis=1)], new])
            now = pareto.hypervolume(found, corner) / box
        volume.append(now)
    return volume, before


def _points(trials: list[Trial], scale: Scale, bounds: Constraints) -> npt.NDArray[np.float64]:
    """Normalised scores (n, m) of the COMPLETE ones that keep every bound."""
    rows = [
        list(scale.normalise(t.scores.values).values())
        for t in trials
        if t.state is TrialState.COMPLETE
        and t.scores is not None
        and is_scored(t, scale.names)
        and bounds.kept(t.scores.values)
    ]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(scale.names))
