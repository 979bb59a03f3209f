"""The answer of a run: whether to merge at all, and what."""

from __future__ import annotations

import dataclasses
import math

from evomerge.choose import best_merge, is_reference, is_single, original, ranked, why_nothing
from evomerge.compare import Difference, constraints_of, paired_mean, scale_of
from evomerge.errors import ConfigError
from evomerge.run import Run
from evomerge.scale import BASE, EXPERT
from evomerge.trial import Split, Trial, TrialState


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
        return Verdict("none", headline, why_nothing(run), "search", finished=done)
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
