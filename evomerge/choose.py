"""Choosing among trials: who is scored again, what is best, and whether to merge at all."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from evomerge import pareto
from evomerge.compare import Difference, constraints_of, is_scored, paired_mean, scale_of
from evomerge.constraints import Constraints
from evomerge.errors import ConfigError
from evomerge.run import Run
from evomerge.scale import BASE, EXPERT, Scale
from evomerge.trial import Kind, Split, Trial, TrialState, value_matrix


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The answer of a run: merge or not, which one, and how sure that is.

    Attributes:
        decision: ``merge``: the best merge beats every single model by its 95% interval;
            ``keep``: it does not even lead; ``unclear``: it leads, but by less than can be told;
            ``none``: there is nothing to compare yet.
        headline: A few words.
        sentence: One sentence with the numbers.
        split: The documents that it speaks about.
        trial: The best merge as scored on ``split``, or None.
        rival: The best single model (an expert, or the base where no expert beats it), or None.
        differences: (reference trial, best merge minus reference), the rival first.
        finished: Whether the search has spent its budget and nothing is running.
    """

    decision: str
    headline: str
    sentence: str
    split: Split
    trial: Trial | None = None
    rival: Trial | None = None
    differences: tuple[tuple[Trial, Difference], ...] = ()
    finished: bool = True


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


def verdict(run: Run) -> Verdict:
    """Whether to merge, and what: the one sentence that a user came for.

    The best merge (what ``--pick best`` exports) is compared with the best single expert,
    the base and the other reference points on the test documents; where those were not scored, on
    the search documents, and the sentence says so. The rival is the one that looks best on these
    very documents, which never flatters the merge.

    Args:
        run: Any run, finished or not.

    Returns:
        The verdict; ``none`` where there is nothing to compare.
    """
    done = _finished(run)
    try:
        best = best_merge(run)
    except ConfigError:
        failed = run.trials and all(t.state is TrialState.FAILED for t in run.trials)
        headline = "Every trial failed" if failed else "Nothing merged yet"
        return Verdict("none", headline, _why_nothing(run), "search", finished=done)
    split: Split = "search"
    trial = original(run, best)
    for other in run.complete("test"):
        if other.number == best.number and any(is_single(t) for t in run.complete("test")):
            split, trial = "test", other
    scale = scale_of(run, split)
    bounds = constraints_of(run, split)
    references = ranked([t for t in run.complete(split) if is_reference(t)], scale, bounds)
    singles = [t for t in references if is_single(t)]
    if not singles:
        mean = scale.mean(trial.scores.values if trial.scores else {})
        sentence = (
            f"{_called(trial)} is the best merge, with a mean normalised score of {mean:.3f}; "
            "neither the base nor an expert was scored, so nothing says whether to merge at all."
        )
        return Verdict("none", f"Best so far: {trial.name}", sentence, split, trial, finished=done)
    rival = singles[0]
    others = [t for t in references if t is not rival and t.number != trial.number]
    pairs = tuple((t, paired_mean(trial, t, scale)) for t in [rival, *others])
    return _sentence(run, trial, pairs, split, done)


def _sentence(
    run: Run,
    trial: Trial,
    pairs: tuple[tuple[Trial, Difference], ...],
    split: Split,
    done: bool,
) -> Verdict:
    """Puts the comparison into words."""
    rival, gap = pairs[0]
    single = _as_single(rival)
    missed = _missed(run, trial, split)
    use = "use the base" if rival.label == BASE else f"use {rival.label}"
    interval = _interval(gap)
    if gap.better:
        decision, headline = "merge", f"Merge: use {_called(trial, first=False)}"
        claim = f"{_called(trial)} beats {single} by {gap.mean:.3f}"
    elif gap.mean > 0:
        decision, headline = "unclear", "No clear winner"
        claim = f"{_called(trial)} leads {single} by {gap.mean:.3f}"
    elif gap.mean == 0:
        decision, headline = "keep", f"Do not merge: {use}"
        claim = f"{_called(trial)}, the best merge, scores the same as {single}"
    else:
        decision, headline = "keep", f"Do not merge: {use}"
        claim = f"{_called(trial)}, the best merge, scores {-gap.mean:.3f} below {single}"
    claim += f" in mean normalised score ({interval}"
    claim += f"; {gap.n:,} {split} documents)" if gap.n else f"; {split} documents)"
    beside = [_versus(t, d) for t, d in pairs[1:] if t.label == BASE or not is_single(t)]
    if gap.mean > 0 and not gap.better:
        claim += ", too little to tell from noise"
    if beside:
        claim += "; it is " + ", ".join(beside[:-1]) + (" and " if beside[1:] else "") + beside[-1]
    if is_reference(trial) and _searched(run):
        claim += "; no searched recipe did better"
    claim += "."
    if split == "search" and not is_reference(trial):
        claim += " The search has seen these documents, so they flatter its winner."
    if missed:
        claim += f" It breaks a bound: {missed}."
        if not _missed(run, rival, split):
            decision, headline = "keep", f"Do not merge: {use}"
            claim += f" {_called(rival)} keeps every bound."
    if not done:
        headline = f"So far, {headline[0].lower()}{headline[1:]}"
    return Verdict(decision, headline, claim, split, trial, rival, pairs, done)


def _missed(run: Run, trial: Trial, split: Split) -> str:
    """Which bounds a trial breaks, in words; empty where it keeps them all."""
    bounds = constraints_of(run, split)
    values = trial.scores.values if trial.scores else {}
    signs = {o.name: o.sign for o in run.objectives}
    limits = dict(zip(bounds.names, bounds.limit, strict=True))
    found = []
    for name in bounds.broken(values):
        word = "at least" if signs[name] > 0 else "at most"
        got = signs[name] * values.get(name, math.nan)
        found.append(f"{name} is {got:.3f}, wanted {word} {signs[name] * limits[name]:.3f}")
    return ", ".join(found)


def _called(trial: Trial, first: bool = True) -> str:
    """A trial within a sentence."""
    article = "the " if trial.label == BASE or trial.label.endswith("average") else ""
    name = article + trial.name
    return name[0].upper() + name[1:] if first else name


def _as_single(trial: Trial) -> str:
    if trial.label == BASE:
        return "the base (which no single expert beats)"
    return f"the best single expert ({trial.label.removeprefix(EXPERT)})"


def _interval(d: Difference) -> str:
    if math.isnan(d.low):
        return "95% CI not known"
    return f"95% CI {d.low:.3f} to {d.high:.3f}"


def _versus(reference: Trial, d: Difference) -> str:
    name = _called(reference, first=False)
    if d.better or d.worse:
        return f"{abs(d.mean):.3f} {'above' if d.mean > 0 else 'below'} {name}"
    return f"level with {name} ({d.mean:+.3f})"


def _finished(run: Run) -> bool:
    """Whether the budget is spent, or the finalists were already scored on the test documents."""
    if run.running:
        return False
    budget = run.meta.get("n_trials")
    return (
        not isinstance(budget, int)
        or len(_searched(run)) >= budget
        or any(t.kind == "final" and not is_reference(t) for t in run.complete("test"))
    )


def _searched(run: Run) -> list[Trial]:
    return [t for t in run.trials if t.kind == "search"]


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
        f"{run.path}: nothing to pick. {_why_nothing(run)} See `evomerge report {run.path}`."
    )


def _why_nothing(run: Run) -> str:
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
