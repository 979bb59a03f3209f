"""What ends a search besides its number of trials: time, documents, a target, no progress.

A budget is told what the optimizer is told and answers one question: how many trials may be
started. It shapes no trial, so it is no part of a run's fingerprint: a larger one continues.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np

from evomerge.constraints import Constraints
from evomerge.errors import ConfigError
from evomerge.recipe import Vector
from evomerge.scale import Scale
from evomerge.trial import Objective, Trial, TrialState, value_matrix


class Budget:
    """Ends a search by whichever limit is reached first.

    Args:
        objectives: What the run scores.
        size: Documents that a whole search trial is asked.
        pareto: Whether the search wants a front: then progress is whatever enters it, else what
            beats the best so far.
        scalarisation: See :attr:`evomerge.scale.Scale.scalarisation`.
        clock: Seconds; the first call to :meth:`left` starts it.
        hours: Time from then on until nothing new is started, in this sitting; what runs is
            finished and the finals follow. None (as below): no limit.
        documents: Documents asked by search and reference trials of all sittings, never exceeded
            by a search trial; one that lost its race counts with those that it was asked.
        target: Normalised score (:class:`evomerge.scale.Scale`, the number that a search
            maximises) of a merge that keeps all bounds, at which the search is over.
        patience: Search trials in a row without progress.

    Raises:
        ConfigError: A limit out of range.
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        size: int,
        *,
        pareto: bool = False,
        scalarisation: str = "mean",
        clock: Callable[[], float] = time.monotonic,
        hours: float | None = None,
        documents: int | None = None,
        target: float | None = None,
        patience: int | None = None,
    ) -> None:
        _check("hours", hours, above=0.0)
        _check("documents", documents, whole=True)
        _check("target", target, above=-math.inf)
        _check("patience", patience, whole=True)
        self._objectives = tuple(objectives)
        self._searched = [o for o in objectives if o.search]
        self._size, self._pareto, self._scalarisation = size, pareto, scalarisation
        self._clock, self._began = clock, math.nan
        self._hours, self._documents = hours, documents
        self._target, self._patience = target, patience
        self._references: list[Trial] = []
        self._told: list[Trial] = []
        self._measure: tuple[Scale, Constraints] | None = None
        self._asked, self._idle = 0, 0
        self._reached = False
        self._front: list[Trial] = []

    def tell(self, trial: Trial) -> None:
        """Takes a finished trial, in told order; those on other splits are passed over."""
        if trial.split != "search":
            return
        if trial.copied_from is None and trial.scores is not None:
            self._asked += self._size if trial.scores.asked is None else trial.scores.asked
        if trial.kind == "reference":
            self._references.append(trial)
            self._measure, self._front = None, []
            self._reached, self._idle = False, 0
            for earlier in self._told:  # what was told beside it, measured by the new scale
                self._follow(earlier)
            return
        self._told.append(trial)
        self._follow(trial)

    def _follow(self, trial: Trial) -> None:
        progress = trial.state is TrialState.COMPLETE and self._progress(trial)
        self._idle = 0 if progress else self._idle + 1

    def _progress(self, trial: Trial) -> bool:
        """Whether a COMPLETE trial enters the front, or is the new best."""
        if self._measure is None:
            scale = Scale.fit(self._searched, self._references, scalarisation=self._scalarisation)
            self._measure = scale, Constraints.fit(self._objectives, self._references)
        scale, bounds = self._measure

        def merits(t: Trial) -> Vector:
            if self._pareto:
                return value_matrix([t], scale.names).ravel()
            return np.array([scale.scalar(t.scores.values if t.scores else {})])

        assert trial.scores is not None  # noqa: S101
        values = trial.scores.values
        missed, mine = bounds.violation(values), merits(trial)
        if self._target is not None and not missed and scale.scalar(values) >= self._target:
            self._reached = True
        rivals = [(bounds.violation(t.scores.values), t) for t in self._front if t.scores]
        least = min((m for m, _ in rivals), default=math.inf)
        if missed > least or (missed == least > 0):
            return False
        if missed == least and any((merits(t) >= mine).all() for _, t in rivals):
            return False
        keep = [t for m, t in rivals if m == missed and not (mine >= merits(t)).all()]
        self._front = [*keep, trial]
        return True

    def left(self, n_pending: int = 0) -> int | None:
        """How many more search trials may be started.

        Args:
            n_pending: Trials that run on the search documents; each is taken to be asked all of
                them.

        Returns:
            At least 0; None: no limit is in sight.
        """
        if math.isnan(self._began):
            self._began = self._clock()
        if self.spent():
            return 0
        if self._documents is None:
            return None
        return max(0, (self._documents - self._asked) // max(1, self._size) - n_pending)

    def spent(self) -> str:
        """Which limit is reached, in words; empty while none is."""
        if self._reached:
            return f"the target of {self._target:g} is reached (budget.target)"
        if self._patience is not None and self._idle >= self._patience:
            return f"no progress for {self._idle} trials (budget.patience)"
        if self._documents is not None and self._asked + self._size > self._documents:
            return f"{self._asked:,} documents were asked (budget.documents)"
        if self._hours is not None and self._clock() - self._began >= 3600 * self._hours:
            return f"{self._hours:g} hours are over (budget.hours)"
        return ""


def _check(name: str, value: float | None, *, above: float = 0.0, whole: bool = False) -> None:
    if value is None:
        return
    good = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not good or not above < value < math.inf:
        wanted = "a whole number >= 1" if whole else "a number" + (" > 0" if above == 0 else "")
        raise ConfigError(f"budget.{name}: expected {wanted} or null, got {value!r}.")
