"""Choosing among trials: who is scored again, and what is best."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from evomerge import pareto
from evomerge.compare import constraints_of, is_scored, scale_of
from evomerge.constraints import Constraints
from evomerge.errors import ConfigError
from evomerge.run import Run
from evomerge.scale import BASE, EXPERT, Scale
from evomerge.trial import Kind, Split, Trial, TrialState, value_matrix


def is_single(trial: Trial) -> bool:
    """Whether a trial is one model alone, the base or one expert: nothing merged."""
    return trial.label == BASE or trial.label.startswith(EXPERT)


def is_reference(trial: Trial) -> bool:
    """Whether a trial is a reference point, on whichever split it was scored."""
    return trial.kind == "reference" or bool(trial.label)


def ranked(
    trials: Sequence[Trial], scale: Scale, constraints: Constraints | None = None
) -> list[Trial]:
    """The scored ones among ``trials``, best first.

    Args:
        trials: Any trials of one split.
        scale: Makes one number of their scores.
        constraints: Bounds; None for no bounds.

    Returns:
        Those that keep every bound by their scalarised score, then the others by how much they
        miss; equal ones by number.
    """
    bounds = constraints or Constraints.none()

    def key(trial: Trial) -> tuple[float, float, int]:
        values = trial.scores.values if trial.scores else {}
        return bounds.violation(values), -scale.scalar(values), trial.number

    return sorted((t for t in trials if is_scored(t, scale.names)), key=key)


def feasible(trials: Sequence[Trial], constraints: Constraints) -> list[Trial]:
    """The trials that keep every bound; where there is none, those that miss by the least."""
    missed = [constraints.violation(t.scores.values if t.scores else {}) for t in trials]
    least = min(missed, default=0.0)
    return [t for t, m in zip(trials, missed, strict=True) if m == least]


def front(run: Run, split: Split = "search", kinds: Collection[Kind] | None = None) -> list[Trial]:
    """The Pareto front over the searched objectives.

    Args:
        run: Any run, finished or not.
        split: Whose scores.
        kinds: Kinds of trials that take part; None for all.

    Returns:
        Non-dominated COMPLETE trials in told order, without copies of an earlier recipe; only
        those that keep every bound, where any does.
    """
    names = [o.name for o in run.searched]
    trials = [
        t
        for t in run.complete(split)
        if t.copied_from is None and is_scored(t, names) and (kinds is None or t.kind in kinds)
    ]
    return _non_dominated(feasible(trials, constraints_of(run, split)), names)


def finalists(run: Run, n: int = 5) -> list[Trial]:
    """Which search trials deserve to be scored again on the select and test documents.

    Args:
        run: Any run, finished or not.
        n: At most how many, >= 1.

    Returns:
        The best by scalarised score, feasible ones first. Where the search was for a Pareto front
        (``run.meta["pareto"]``) they are half of the places; the rest go to the members of the
        front that lie farthest from those already chosen. Best first.

    Raises:
        ConfigError: ``n`` below 1.
    """
    if n < 1:
        raise ConfigError(f"finalists: n must be >= 1, got {n}.")
    scale, bounds = scale_of(run, "search"), constraints_of(run, "search")
    trials = [
        t
        for t in run.complete("search")
        if t.kind == "search" and t.copied_from is None and not is_reference(t)
    ]
    best = ranked(trials, scale, bounds)
    if not run.meta.get("pareto") or len(scale.names) < 2 or len(best) <= n:
        return best[:n]
    chosen = best[: (n + 1) // 2]
    candidates = _non_dominated(feasible(best, bounds), scale.names)
    while len(chosen) < n:
        left = [t for t in candidates if t not in chosen]
        if not left:
            left = [t for t in best if t not in chosen][:1]
        gaps = normalised(left, scale)[:, None, :] - normalised(chosen, scale)[None, :, :]
        nearest = np.linalg.norm(gaps, axis=-1).min(axis=1)
        chosen.append(left[int(nearest.argmax())])
    return ranked(chosen, scale, bounds)


def _non_dominated(trials: Sequence[Trial], names: Sequence[str]) -> list[Trial]:
    if not trials:
        return []
    mask = pareto.non_dominated(value_matrix(trials, names))
    return [t for t, keep in zip(trials, mask, strict=True) if keep]


def normalised(trials: Sequence[Trial], scale: Scale) -> npt.NDArray[np.float64]:
    """(n, m) normalised scores."""
    zero, unit = np.array(scale.zero), np.array(scale.unit)
    normalised: npt.NDArray[np.float64] = (value_matrix(trials, scale.names) - zero) / unit
    return normalised


def best_merge(run: Run) -> Trial:
    """The best merge, as scored where the choice is made.

    Raises:
        ConfigError: No merge was scored.
    """
    again = [t for t in run.complete("select") if not is_single(t)]
    chosen = ranked(again, scale_of(run, "select"), constraints_of(run, "select"))
    if not any(not is_reference(t) for t in chosen):
        chosen = ranked(merges(run), scale_of(run, "search"), constraints_of(run, "search"))
    if not chosen:
        raise _nothing(run)
    return chosen[0]


def merges(run: Run) -> list[Trial]:
    """The merges that the search scored, references among them, the first of every recipe."""
    return [t for t in run.complete("search") if t.copied_from is None and not is_single(t)]


def merged_front(run: Run) -> list[Trial]:
    """The merges on the front; where single models hold all of it, the front among merges.

    Raises:
        ConfigError: No merge was scored.
    """
    names = [o.name for o in run.searched]
    members = [t for t in front(run) if not is_single(t)]
    if not members:
        scored = [t for t in merges(run) if is_scored(t, names)]
        members = _non_dominated(feasible(scored, constraints_of(run, "search")), names)
    if not members:
        raise _nothing(run)
    return members


def _nothing(run: Run) -> ConfigError:
    """Why there is nothing to pick."""
    return ConfigError(
        f"{run.path}: nothing to pick. {why_nothing(run)} See `evomerge report {run.path}`."
    )


def reason(trial: Trial) -> str:
    """The last line of a FAILED trial's error: what went wrong, without the way there."""
    lines = [line.strip() for line in (trial.error or "").splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def original(run: Run, trial: Trial) -> Trial:
    """The same recipe as it was scored during the search, where it was."""
    for other in run.complete("search"):
        if other.number == trial.number:
            return other
    return trial


def why_nothing(run: Run) -> str:
    """Why no merge is COMPLETE, as one sentence."""
    failed = [t for t in run.trials if t.state is TrialState.FAILED]
    if failed:
        share = f"{len(failed)} of {len(run.trials)}"
        return f"No merge was scored: {share} trials failed, the first with {reason(failed[0])!r}."
    if run.running:
        return f"No merge was scored yet; {len(run.running)} trials are running."
    singles = ranked(run.complete("search"), scale_of(run, "search"))
    if singles:
        return f"No merge was scored yet, only single models; {singles[0].name} is the best."
    return "No merge was scored yet."
