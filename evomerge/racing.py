"""Racing: a candidate is asked documents only as long as it can still win.

A :class:`Bar` is what a candidate has to beat: the best trial so far, or every member of the
Pareto front. Documents are asked in growing blocks, in one order for all candidates; after each
block the candidate's differences from its rivals on the same documents say whether it can still
win. Maron & Moore (1994), "Hoeffding races", and Birattari et al. (2002), "A racing algorithm for
configuring metaheuristics", raced with unpaired bounds and rank tests; here the differences are
paired, and two things are known that a general race does not know:

* What its score on all documents of the split will be, and how surely:
  :mod:`evomerge.estimate`. The test is Student's, with the degrees of freedom of that.
* How a candidate loses. Every way to lose is one test of a linear combination of objectives,
  or several that must all hold: the weighted mean below the incumbent's; for ``worst`` and
  ``chebyshev`` any one term of the minimum below it; any bound broken; for a front, no better than
  one member in any objective (an intersection-union test, which needs no correction: Berger 1982).

The error is what a candidate that just equals its rivals may be stopped with. It is divided among
the looks, and among what can go wrong at one (Bonferroni), so it holds whatever their dependence.
What can go wrong are the directions of hurdles, however many members the front has: a candidate
that should go on brings at least one hurdle of every way to lose to its limit, so to be stopped,
its estimate in the direction of one of these must be too low by what the test asks for.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from evomerge import pareto
from evomerge.constraints import Constraints
from evomerge.errors import ConfigError, StudyError
from evomerge.estimate import Estimate, estimate
from evomerge.scale import Scale
from evomerge.trial import Objective, Scores, Trial, TrialState

Array = npt.NDArray[np.float64]
Rows = Mapping[str, npt.NDArray[np.float32]]
"""Objective to signed per-document values, as in ``Scores.per_example``."""

_HISTORY = 32
"""Newest COMPLETE trials that estimates are made from."""


@dataclasses.dataclass(frozen=True)
class Hurdle:
    """A linear combination of signed scores that a candidate must bring to a limit.

    Attributes:
        weights: (m,) of the combination, >= 0 somewhere.
        limit: What it must reach.
    """

    weights: tuple[float, ...]
    limit: float


@dataclasses.dataclass(frozen=True, eq=False)
class Verdict:
    """What a bar says of a candidate that was asked some of the documents.

    Attributes:
        stop: Whether it cannot win.
        values: Objective to the estimate of its score on all documents.
        stderr: Objective to the standard error of that.
    """

    stop: bool
    values: Mapping[str, float]
    stderr: Mapping[str, float]


@dataclasses.dataclass(frozen=True, eq=False)
class Bar:
    """What a candidate has to beat; travels to the worker with its job.

    Attributes:
        names: The m objectives, optimised and bounded ones.
        values: (H, m) signed scores of earlier trials.
        rows: Objective to their (H, n) signed per-document values; an objective that is known
            without documents has none.
        losses: The ways to lose: in each, every hurdle must be missed.
        shares: Growing shares of the documents after which it is asked, the last one 1.
        error: Chance to stop a candidate that just reaches the bar.
        certain: Scores of the candidate that are known before any document is asked.
    """

    names: tuple[str, ...]
    values: Array
    rows: Rows
    losses: tuple[tuple[Hurdle, ...], ...]
    shares: tuple[float, ...]
    error: float
    certain: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def knowing(self, values: Mapping[str, float]) -> Bar:
        """The same bar for a candidate of which some scores are known for certain."""
        return dataclasses.replace(self, certain={**self.certain, **values})

    def verdict(self, seen: Rows, weights: Mapping[str, Array] | None = None) -> Verdict:
        """Whether to go on.

        Args:
            seen: Objective to what the candidate scored on each of the n documents, signed, NaN
                where it was not asked; none for what is known for certain.
            weights: Objective to the (n,) weights, of mean 1, of a score that is a weighted mean
                over documents (bytes, for bits per byte); without an entry all weigh the same.

        Raises:
            StudyError: An objective that is neither scored per document nor known for certain.
        """
        found = []
        for i, name in enumerate(self.names):
            if name in self.certain:
                found.append(Estimate(self.certain[name], 0.0, math.inf))
                continue
            if name not in self.rows:
                raise StudyError(
                    f"objective {name!r}: racing needs its score per document, or to know it "
                    "before documents are asked; this evaluator gives neither. Set racing=off."
                )
            found.append(self._estimate(i, seen[name], (weights or {}).get(name)))
        directions = {hurdle.weights for loss in self.losses for hurdle in loss}
        mistakes = min(len(directions), len(self.losses))  # ways to be stopped wrongly
        level = self.error / max(1, len(self.shares) - 1) / max(1, mistakes)
        return Verdict(
            any(all(_missed(h, found, level) for h in loss) for loss in self.losses),
            {n: e.mean for n, e in zip(self.names, found, strict=True)},
            {n: e.stderr for n, e in zip(self.names, found, strict=True)},
        )

    def _estimate(self, i: int, seen: npt.ArrayLike, weights: Array | None) -> Estimate:
        """The i-th score on all documents that earlier trials have a score of."""
        values, rows = (
            np.asarray(seen, np.float64),
            np.asarray(self.rows[self.names[i]], np.float64),
        )
        if weights is not None:
            # A weighted mean is the mean of c + w (rate - c), whatever c; it is linear where c is
            # one for all. Stored are v + w (rate - v), linearised around each trial's own score v.
            c = float(self.values[:, i].mean())
            rows = rows + (c - self.values[:, i, None]) * (1 - weights)
            values = c + weights * (values - c)
        known = np.isfinite(rows).all(axis=0)
        found = estimate(rows[:, known], values[known])
        answers = np.concatenate([rows[:, known].ravel(), values[np.isfinite(values)]])
        if math.isnan(found.stderr) and not np.ptp(answers):
            return Estimate(found.mean, 0.0, math.inf)  # nobody ever differed: the others decide
        return found


def _missed(hurdle: Hurdle, found: Sequence[Estimate], level: float) -> bool:
    """Whether a candidate stays below a limit, with confidence 1 - level."""
    used = [(a, e) for a, e in zip(hurdle.weights, found, strict=True) if a]
    gap = sum(a * e.mean for a, e in used) - hurdle.limit
    parts = [(a * e.stderr) ** 2 for a, e in used]
    variance = sum(parts)
    if gap >= 0 or not math.isfinite(variance):
        return False
    if variance == 0:
        return True
    from scipy.special import stdtr

    spread = sum(p**2 / e.freedom for p, (_, e) in zip(parts, used, strict=True))
    return bool(stdtr(variance**2 / spread, gap / math.sqrt(variance)) < level)


@dataclasses.dataclass(frozen=True)
class Racing:
    """How a search races its candidates; makes the bar of the moment out of told trials.

    Args:
        objectives: All that guide the search.
        pareto: Whether the search is for a front.
        scalarisation: What a search for one goal maximises.
        error: Chance that a candidate which just equals the best is stopped; in (0, 1).
        first: Share of the documents that is asked first, in (0, 1).
        growth: Factor from one look to the next, > 1.
        tolerance: By how much, in normalised scores, a candidate must exceed every member of the
            front in something, >= 0. What is stopped for less is within it of a member in every
            objective (additive epsilon-dominance: Laumanns et al. 2002, "Combining convergence
            and diversity in evolutionary multiobjective optimization").

    Raises:
        ConfigError: A setting out of range.
    """

    objectives: tuple[Objective, ...]
    pareto: bool
    scalarisation: str = "mean"
    error: float = 0.05
    first: float = 0.125
    growth: float = 2.0
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        """Checks the settings."""
        for name, low, high in (("error", 0, 1), ("first", 0, 1), ("growth", 1, math.inf)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"racing.{name}: expected a number, got {value!r}.")
            if not low < value < high:
                above = f" and < {high:g}" if high < math.inf else ""
                raise ConfigError(f"racing.{name}: expected > {low}{above}, got {value!r}.")
        lead = self.tolerance
        if isinstance(lead, bool) or not isinstance(lead, int | float) or not 0 <= lead < math.inf:
            raise ConfigError(f"racing.tolerance: expected a number >= 0, got {lead!r}.")

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares of the documents after which a candidate is looked at, the last one 1."""
        found = [self.first]
        while found[-1] * self.growth < 1:
            found.append(found[-1] * self.growth)
        return (*found, 1.0)

    def bar(self, told: Sequence[Trial]) -> Bar | None:
        """What a candidate has to beat that is started now.

        Args:
            told: Finished trials in told order; a pure function of these.

        Returns:
            The bar; None where there is nothing to beat yet: no COMPLETE trial that keeps all
            bounds.
        """
        names = tuple(o.name for o in self.objectives)
        known = [t for t in told if _is_measured(t, names)]
        optimised = [o for o in self.objectives if o.search]
        scale = Scale.fit(optimised, known, scalarisation=self.scalarisation)
        bounds = Constraints.fit(self.objectives, known)
        feasible = [t for t in known if bounds.kept(_scores(t).values)] if bounds.names else known
        if not feasible:
            return None
        F = np.array([[_scores(t).values[n] for n in scale.names] for t in feasible])
        if self.pareto:
            _, once = np.unique(F, axis=0, return_index=True)
            front = pareto.non_dominated(F)
            rivals = [feasible[i] for i in sorted(once) if front[i]]
            losses = [_dominated(t, scale, names, self.tolerance) for t in rivals]
        else:
            goals = scale.scalars((F - scale.zero) / scale.unit).tolist()
            _, _, best = max((goal, -t.number, t) for goal, t in zip(goals, feasible, strict=True))
            losses = [(hurdle,) for hurdle in _below(best, scale, names)]
        losses += [
            (Hurdle(_one(names, n, 1 / u), limit / u),)
            for n, limit, u in zip(bounds.names, bounds.limit, bounds.unit, strict=True)
        ]
        recent = known[-_HISTORY:]
        values = np.array([[_scores(t).values[n] for n in names] for t in recent])
        rows: dict[str, npt.NDArray[np.float32]] = {}
        for name in names:
            found = [_scores(t).per_example.get(name) for t in recent]
            if all(row is not None for row in found):
                rows[name] = np.stack([row for row in found if row is not None])
        return Bar(names, values, rows, tuple(losses), self.shares, self.error)


def _is_measured(trial: Trial, names: Sequence[str]) -> bool:
    """Whether a trial can be a rival: COMPLETE on the search documents, scored on everything."""
    return (
        trial.state is TrialState.COMPLETE  # first: of many told trials few are
        and trial.split == "search"
        and trial.kind != "final"
        and trial.scores is not None
        and all(math.isfinite(trial.scores.values.get(n, math.nan)) for n in names)
    )


def _scores(trial: Trial) -> Scores:
    assert trial.scores is not None  # noqa: S101 - measured trials have them
    return trial.scores


def _one(names: Sequence[str], name: str, weight: float) -> tuple[float, ...]:
    """A combination of one objective alone."""
    return tuple(weight if n == name else 0.0 for n in names)


def _dominated(
    trial: Trial, scale: Scale, names: Sequence[str], tolerance: float
) -> tuple[Hurdle, ...]:
    """The way to lose against a member of the front: no better in any optimised objective."""
    values = _scores(trial).values
    return tuple(
        Hurdle(_one(names, n, 1 / u), values[n] / u + tolerance)
        for n, u in zip(scale.names, scale.unit, strict=True)
    )


def _below(best: Trial, scale: Scale, names: Sequence[str]) -> list[Hurdle]:
    """The ways to lose against the best of a single-objective search.

    A scalarised score is the minimum of combinations linear in the scores (of one, for the mean):
    it is below the best one's as soon as any of them is.
    """
    goal = scale.scalar(_scores(best).values)
    hurdles = []
    for weights, constant in scale.terms():
        by_name = dict(zip(scale.names, weights.tolist(), strict=True))
        hurdles.append(Hurdle(tuple(by_name.get(n, 0.0) for n in names), goal - constant))
    return hurdles
