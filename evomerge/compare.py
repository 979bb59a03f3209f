"""Differences between trials, with the uncertainty that they deserve.

Every candidate answers the same documents in the same order, so two trials are compared in pairs:
the difficulty of the documents cancels, and a far smaller difference can be told from noise than
the two standard errors suggest. All intervals are 95% Student t intervals; the uncertainty of the
scale itself (of the reference scores that define 0 and 1) is not part of them.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np

from evomerge.constraints import Constraints
from evomerge.errors import ConfigError, unknown_name
from evomerge.run import Run
from evomerge.scale import EXPERT, Scale
from evomerge.trial import Objective, Scores, Split, Trial, TrialState

UNANIMOUS = 6
"""Documents that must all differ by the same amount before that counts as evidence: the sign test
needs six (2 x 0.5**6 < 0.05), and a t interval of zero width would claim it from two."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """A difference and how well it is known.

    Attributes:
        mean: The difference; positive where the first trial is better.
        stderr: Its standard error; NaN where not known.
        low: Lower end of the 95% interval; NaN where not known.
        high: Upper end of the 95% interval; NaN where not known.
        n: Documents compared in pairs; 0 where the scores could not be paired.
    """

    mean: float
    stderr: float
    low: float
    high: float
    n: int

    @property
    def z(self) -> float:
        """Mean over standard error; 0 for no difference at all, NaN where not known."""
        if self.stderr > 0:
            return self.mean / self.stderr
        if math.isnan(self.stderr):
            return math.nan
        return math.copysign(math.inf, self.mean) if self.mean else 0.0

    @property
    def better(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.low > 0

    @property
    def worse(self) -> bool:
        """Whether the whole interval lies below zero."""
        return self.high < 0


@dataclasses.dataclass(frozen=True)
class _Term:
    """One summand of a mean: its value, the variance of that, its documents and freedom."""

    mean: float
    variance: float
    n: int
    dof: float


def paired(a: Trial, b: Trial, objective: Objective | str) -> Difference:
    """The paired per-document difference a - b on one objective, in signed values.

    Args:
        a: A scored trial.
        b: Another one, scored on the same split.
        objective: Which objective, or its name.

    Returns:
        Mean over the documents that both answered, with the t interval of n - 1 degrees of
        freedom. For a corpus metric (no per-document values) the difference of the two values,
        with an unpaired interval from their standard errors and ``n = 0``.

    Raises:
        ConfigError: A trial without scores, other splits, or other documents.
        UnknownNameError: An objective that one of them was not scored on.
    """
    name = objective if isinstance(objective, str) else objective.name
    return _interval([_difference(a, b, name)])


def paired_mean(a: Trial, b: Trial, scale: Scale) -> Difference:
    """The difference a - b in the weighted mean of normalised scores.

    Each task contributes weight / unit times the difference of the aggregated values, with the
    variance of the paired per-document differences; tasks are independent, and the degrees of
    freedom follow Welch and Satterthwaite.

    Args:
        a: A scored trial.
        b: Another one, scored on the same split.
        scale: How values are normalised and weighted.

    Returns:
        The difference; ``n`` counts the paired documents of all tasks.

    Raises:
        ConfigError: A trial without scores, other splits, or other documents.
        UnknownNameError: An objective that one of them was not scored on.
    """
    terms = []
    for name, unit, weight in zip(scale.names, scale.unit, scale.weights, strict=True):
        if weight == 0:
            continue
        term = _difference(a, b, name)
        mean = _value(a, name) - _value(b, name)
        factor = weight / unit
        terms.append(_Term(factor * mean, factor**2 * term.variance, term.n, term.dof))
    return _interval(terms)


def normalised_mean(trial: Trial, scale: Scale) -> Difference:
    """The weighted mean of a trial's normalised scores, as a difference from a score of zero.

    Raises:
        ConfigError: A trial without scores.
        UnknownNameError: An objective that it was not scored on.
    """
    scores = _scores(trial)
    terms = []
    columns = zip(scale.names, scale.zero, scale.unit, scale.weights, strict=True)
    for name, zero, unit, weight in columns:
        if weight == 0:
            continue
        stderr = scores.stderr.get(name, math.nan)
        rows = scores.per_example.get(name)
        n = int(np.isfinite(rows).sum()) if rows is not None else 0
        mean = weight / unit * (_value(trial, name) - zero)
        dof = n - 1 if n > 1 else math.inf
        terms.append(_Term(mean, (weight / unit * stderr) ** 2, n, dof))
    return _interval(terms)


def scale_of(run: Run, split: Split) -> Scale:
    """The scale of one split: its own where its experts were scored, else that of the search."""
    return run.scale(_unit_split(run, split))


def constraints_of(run: Run, split: Split) -> Constraints:
    """The constraints of one split, with bounds in per cent read as :func:`scale_of` reads it."""
    return run.constraints(_unit_split(run, split))


def _unit_split(run: Run, split: Split) -> Split:
    names = {o.name for o in run.searched}
    own = any(
        t.label.startswith(EXPERT) and is_scored(t, names) for t in run.trials if t.split == split
    )
    return split if own else "search"


def is_scored(trial: Trial, names: Iterable[str]) -> bool:
    """Whether a trial is COMPLETE and has a finite value for every name."""
    return (
        trial.state is TrialState.COMPLETE
        and trial.scores is not None
        and all(math.isfinite(trial.scores.values.get(name, math.nan)) for name in names)
    )


def smallest_visible(
    source: Run | Sequence[Trial], scale: Scale | None = None, split: Split = "search"
) -> float:
    """The smallest difference in mean normalised score that the documents can tell apart.

    Twice the median paired standard error between reference points of one split (with fewer than
    two of them: between whatever was scored there first).

    Args:
        source: A run, or trials.
        scale: How values are normalised; may be left out for a run.
        split: Whose documents.

    Returns:
        The difference, or NaN where nothing can be compared.

    Raises:
        ConfigError: Trials without a scale.
    """
    if isinstance(source, Run):
        scale = scale or scale_of(source, split)
        source = source.trials
    if scale is None:
        raise ConfigError("smallest_visible needs the scale of these trials, got None.")
    scored = [t for t in source if t.split == split and is_scored(t, scale.names)]
    references = [t for t in scored if t.kind == "reference" or t.label]
    chosen = (references if len(references) > 1 else scored)[:12]
    errors = [paired_mean(a, b, scale).stderr for a, b in itertools.combinations(chosen, 2)]
    known = [e for e in errors if math.isfinite(e) and e > 0]
    return 2 * float(np.median(known)) if known else math.nan


def _difference(a: Trial, b: Trial, name: str) -> _Term:
    """Mean per-document difference; the unpaired one where documents are not to be had."""
    if a.split != b.split:
        raise ConfigError(
            f"cannot compare {a.name} on the {a.split} documents with {b.name} on the {b.split} "
            "documents; expected two trials of one split."
        )
    gap = _value(a, name) - _value(b, name)
    x, y = _scores(a).per_example.get(name), _scores(b).per_example.get(name)
    if x is not None and y is not None:
        if x.shape != y.shape:
            raise ConfigError(
                f"objective {name!r}: {a.name} has {x.shape} documents and {b.name} {y.shape}; "
                "expected the same documents in the same order."
            )
        rows = x.astype(np.float64) - y.astype(np.float64)
        rows = rows[np.isfinite(rows)]
        if n := len(rows):
            variance = float(rows.var(ddof=1)) / n if n > 1 else math.nan
            if 1 < n < UNANIMOUS and rows[0] != 0 and np.ptp(rows) == 0:
                variance = math.nan
            return _Term(float(rows.mean()), variance, n, n - 1)
    errors = [_scores(t).stderr.get(name, math.nan) for t in (a, b)]
    return _Term(gap, errors[0] ** 2 + errors[1] ** 2, 0, math.inf)


def _interval(terms: Sequence[_Term]) -> Difference:
    """The sum of independent terms with its 95% interval."""
    mean = float(sum(t.mean for t in terms))
    variance = float(sum(t.variance for t in terms))
    n = sum(t.n for t in terms)
    if not math.isfinite(variance):
        return Difference(mean, math.nan, math.nan, math.nan, n)
    from scipy.special import stdtrit

    # Welch-Satterthwaite; a term of infinite freedom adds nothing to the denominator.
    spread = sum(t.variance**2 / t.dof for t in terms if t.variance > 0)
    dof = variance**2 / spread if spread > 0 else 1e9
    stderr = math.sqrt(variance)
    half = float(stdtrit(min(dof, 1e9), 0.975)) * stderr
    return Difference(mean, stderr, mean - half, mean + half, n)


def _scores(trial: Trial) -> Scores:
    if trial.scores is None:
        raise ConfigError(
            f"{trial.name} is {trial.state} and has no scores; expected a COMPLETE trial."
        )
    return trial.scores


def _value(trial: Trial, name: str) -> float:
    values = _scores(trial).values
    if name not in values:
        raise unknown_name(
            "objective", name, values, f"{trial.name} was scored on {trial.split} documents."
        )
    return values[name]
