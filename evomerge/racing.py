"""Racing: a candidate is asked documents only as long as it can still win.

A :class:`Bar` is what a candidate has to beat: the best trial so far, or every member of the
Pareto front. Documents are asked in growing blocks, in one order for all candidates; after each
block the candidate's differences from its rivals on the same documents say whether it can still
win. Maron & Moore (1994), "Hoeffding races", and Birattari et al. (2002), "A racing algorithm for
configuring metaheuristics", raced with unpaired bounds and rank tests; here the differences are
paired, and three things are known that a general race does not know:

* What decides is the score on the n documents of the split, not on all documents of the world. So
  after k of n the variance of a mean has the factor 1 - k/n (Cochran 1977, "Sampling techniques",
  eq. 2.12), and where all were asked nothing is uncertain.
* How much two candidates of this search differ from document to document. Twelve equal answers
  are no proof that the other hundred are equal: the variance on the documents seen is moderated
  towards that of earlier trials, as ``PRIOR`` more observations (Smyth 2004, "Linear models and
  empirical Bayes methods", eq. 3.2), and the test is Student's with so many more degrees of
  freedom.
* Where the candidate loses. Every way to lose is one test of a linear combination of objectives,
  or several that must all hold: the weighted mean below the incumbent's; for ``worst`` and
  ``chebyshev`` any one term of the minimum below it; any bound broken; for a front, worse than one
  member in every objective (an intersection-union test, which needs no correction: Berger 1982).

The error is what a candidate that just equals its rivals may be stopped with. It is divided among
the looks, and among the ways to lose (Bonferroni), so it holds whatever their dependence.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from evomerge import pareto
from evomerge.constraints import Constraints
from evomerge.errors import ConfigError
from evomerge.scale import Scale
from evomerge.trial import Objective, Scores, Trial, TrialState

Array = npt.NDArray[np.float64]
Rows = Mapping[str, npt.NDArray[np.float32]]
"""Objective to signed per-document values, as in ``Scores.per_example``."""

PRIOR = 4.0
"""Observations that the variance of earlier trials' differences counts for."""
_FLOOR = 0.02
"""Least variance of a difference from document to document, in shares of the rival's own."""
_HISTORY = 32
"""Newest COMPLETE trials that the variance of differences is read off."""


@dataclasses.dataclass(frozen=True)
class Hurdle:
    """A linear combination of signed scores that a candidate must bring to a limit.

    Attributes:
        rival: Index of the rival whose documents it is paired with.
        weights: (m,) of the combination, >= 0 somewhere.
        limit: What it must reach.
    """

    rival: int
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
        values: (R, m) signed scores of the rivals.
        rows: Objective to the rivals' (R, n) signed per-document values; an objective that is
            known without documents has none.
        spread: (R, m) variance from document to document of earlier trials' differences from each
            rival.
        losses: The ways to lose: in each, every test must fail.
        shares: Growing shares of the documents after which it is asked, the last one 1.
        error: Chance to stop a candidate that just equals its rivals.
        certain: Scores of the candidate that are known before any document is asked.
    """

    names: tuple[str, ...]
    values: Array
    rows: Rows
    spread: Array
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

        Returns:
            The verdict; its estimates are paired with the rival that resembles the candidate most.
        """
        estimates = [self._estimate(r, seen, weights or {}) for r in range(len(self.values))]
        level = self.error / max(1, len(self.shares) - 1) / max(1, len(self.losses))
        stop = any(
            all(_fails(test, *estimates[test.rival], level) for test in loss)
            for loss in self.losses
        )
        means, variances, _ = min(estimates, key=lambda e: float(self._unitless(e[1])))
        return Verdict(
            stop,
            dict(zip(self.names, means.tolist(), strict=True)),
            dict(zip(self.names, np.sqrt(variances).tolist(), strict=True)),
        )

    def _unitless(self, variances: Array) -> float:
        """Sum of variances in units that do not depend on an objective's own."""
        scale = self.spread.mean(axis=0)
        return float((variances / np.where(scale > 0, scale, 1.0)).sum())

    def _estimate(
        self, rival: int, seen: Rows, weights: Mapping[str, Array]
    ) -> tuple[Array, Array, Array]:
        """(m,) estimates of the candidate's scores, their variances and degrees of freedom."""
        found = []
        for i, name in enumerate(self.names):
            value = float(self.values[rival, i])
            if name in self.certain:
                found.append((self.certain[name], 0.0, math.inf))
                continue
            own, w = np.asarray(self.rows[name][rival], dtype=np.float64), weights.get(name)
            if w is not None:  # stored are linearised scores v + w (rate - v), of mean v
                own = (own - value * (1 - w)) / w
            mean, variance, dof = paired_estimate(seen[name], own, w, self.spread[rival, i])
            found.append((value + mean, variance, dof))
        means, variances, dofs = np.array(found, dtype=np.float64).T
        return means, variances, dofs


def paired_estimate(
    seen: npt.ArrayLike, rival: npt.ArrayLike, weights: npt.ArrayLike | None, spread: float
) -> tuple[float, float, float]:
    """The difference of two scores over n documents, from those that were asked.

    Args:
        seen: (n,) values of the candidate, NaN where not asked.
        rival: (n,) values of its rival.
        weights: (n,) of a weighted mean, of mean 1; None for equal ones.
        spread: Variance of earlier differences from document to document.

    Returns:
        The difference (a ratio estimate, where weights differ), its variance, and the degrees of
        freedom of that.
    """
    a, b = np.asarray(seen, dtype=np.float64), np.asarray(rival, dtype=np.float64)
    known = np.isfinite(b)
    both = known & np.isfinite(a)
    n, k = int(known.sum()), int(both.sum())
    if k == 0:
        return 0.0, math.inf, PRIOR
    d = a[both] - b[both]
    w = np.ones(k) if weights is None else np.asarray(weights, dtype=np.float64)[both]
    w = w / w.mean()
    mean = float((w * d).mean())
    squares = float(((w * (d - mean)) ** 2).sum())
    least = max(float(spread), _FLOOR * float(b[known].var()))
    variance = (PRIOR * least + squares) / (PRIOR + k - 1)
    return mean, variance / k * (1 - k / n), PRIOR + k - 1


def _fails(test: Hurdle, means: Array, variances: Array, dofs: Array, level: float) -> bool:
    """Whether a candidate stays below a test's limit, with confidence 1 - level."""
    a = np.array(test.weights)
    used = a != 0
    gap = float(a[used] @ means[used]) - test.limit
    parts = a[used] ** 2 * variances[used]
    variance = float(parts.sum())
    if gap >= 0 or not math.isfinite(variance):
        return False
    if variance == 0:
        return True
    from scipy.special import stdtr

    freedom = variance**2 / float((parts**2 / dofs[used]).sum())  # Welch & Satterthwaite
    return bool(stdtr(freedom, gap / math.sqrt(variance)) < level)


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

    Raises:
        ConfigError: A setting out of range.
    """

    objectives: tuple[Objective, ...]
    pareto: bool
    scalarisation: str = "mean"
    error: float = 0.05
    first: float = 0.125
    growth: float = 2.0

    def __post_init__(self) -> None:
        """Checks the settings."""
        for name, low, high in (("error", 0, 1), ("first", 0, 1), ("growth", 1, math.inf)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"racing.{name}: expected a number, got {value!r}.")
            if not low < value < high:
                above = f" and < {high:g}" if high < math.inf else ""
                raise ConfigError(f"racing.{name}: expected > {low}{above}, got {value!r}.")

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
        feasible = [t for t in known if bounds.kept(_scores(t).values)]
        if not feasible:
            return None
        if self.pareto:
            F = np.array([[_scores(t).values[n] for n in scale.names] for t in feasible])
            _, once = np.unique(F, axis=0, return_index=True)
            front = pareto.non_dominated(F)
            rivals = [feasible[i] for i in sorted(once) if front[i]]
            losses = [_dominated(r, t, scale, names) for r, t in enumerate(rivals)]
        else:
            best = max(feasible, key=lambda t: (scale.scalar(_scores(t).values), -t.number))
            rivals = [best]
            losses = [(test,) for test in _below(best, scale, names)]
        losses += [
            (Hurdle(0, _one(names, n, 1 / u), limit / u),)
            for n, limit, u in zip(bounds.names, bounds.limit, bounds.unit, strict=True)
        ]
        rows = {
            n: np.stack([_scores(t).per_example[n] for t in rivals])  # type: ignore[misc]
            for n in names
            if all(_scores(t).per_example.get(n) is not None for t in rivals)
        }
        values = np.array([[_scores(t).values[n] for n in names] for t in rivals])
        spread = _spread(rivals, known[-_HISTORY:], names)
        return Bar(names, values, rows, spread, tuple(losses), self.shares, self.error)


def _is_measured(trial: Trial, names: Sequence[str]) -> bool:
    """Whether a trial can be a rival: COMPLETE on the search documents, scored on everything."""
    return (
        trial.split == "search"
        and trial.kind != "final"
        and trial.state is TrialState.COMPLETE
        and trial.scores is not None
        and all(math.isfinite(trial.scores.values.get(n, math.nan)) for n in names)
    )


def _scores(trial: Trial) -> Scores:
    assert trial.scores is not None  # noqa: S101 - measured trials have them
    return trial.scores


def _one(names: Sequence[str], name: str, weight: float) -> tuple[float, ...]:
    """A combination of one objective alone."""
    return tuple(weight if n == name else 0.0 for n in names)


def _dominated(rival: int, trial: Trial, scale: Scale, names: Sequence[str]) -> tuple[Hurdle, ...]:
    """The way to lose against a member of the front: below it in every optimised objective."""
    values = _scores(trial).values
    return tuple(
        Hurdle(rival, _one(names, n, 1 / u), values[n] / u)
        for n, u in zip(scale.names, scale.unit, strict=True)
    )


def _below(best: Trial, scale: Scale, names: Sequence[str]) -> list[Hurdle]:
    """The ways to lose against the best of a single-objective search.

    A scalarised score is the minimum of combinations linear in the scores (of one, for the mean):
    it is below the best one's as soon as any of them is.
    """
    goal = scale.scalar(_scores(best).values)
    tests = []
    for weights, constant in scale.terms():
        by_name = dict(zip(scale.names, weights, strict=True))
        full = tuple(by_name.get(n, 0.0) for n in names)
        tests.append(Hurdle(0, full, goal - constant))
    return tests


def _spread(rivals: Sequence[Trial], known: Sequence[Trial], names: Sequence[str]) -> Array:
    """(R, m) median variance of the differences of earlier trials from each rival."""
    found = np.zeros((len(rivals), len(names)))
    for i, name in enumerate(names):
        rows = [_scores(t).per_example.get(name) for t in known]
        if any(row is None for row in rows):
            continue
        known_rows = np.stack(rows).astype(np.float64)  # type: ignore[arg-type]
        for r, rival in enumerate(rivals):
            own = np.asarray(_scores(rival).per_example[name], dtype=np.float64)
            variances = np.nanvar(known_rows - own, axis=1)
            others = variances[[t is not rival for t in known]]
            found[r, i] = float(np.median(others)) if len(others) else 0.0
    return found
