"""Per-document scores as resources that models compete for.

Competition needs scores that are 0 where a model can do nothing. On document j of an objective
with n documents, for member i of an archive::

    s_ij = weight / n * max(0, v_ij - zero_j) / unit          c_j = max_i s_ij

* ``zero_j`` is 0 for an accuracy (``maximize``, and never negative). For a loss it is the base
  model's value on the same document: the resource is what was learned there, in bits or nats.
  Where the base is not known it is the worst reference's value there, else the worst member's.
* ``unit`` is the objective's unit in normalised scores (:mod:`evomerge.scale`). So objectives
  share out their weights, whatever they are measured in and however many documents they have, and
  the sum over documents is the weighted mean of what was recovered.
* ``c_j`` is the most that a member or a reference has of it. For hits and misses that makes each
  document worth 1, as in M2N2's official code. For losses it keeps the noise out: a document on
  which nothing is learned gives nothing, however its noise is shared.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from evomerge.errors import StudyError, no_document_scores
from evomerge.optimizers.base import Problem, Yardstick
from evomerge.scale import BASE
from evomerge.trial import Trial

Array = npt.NDArray[np.float64]


class Documents:
    """The documents of all optimised objectives, one after the other.

    It is a fold: the first row sets the number of documents, told references set zero and unit.

    Args:
        problem: Its objectives and their weights.
    """

    def __init__(self, problem: Problem) -> None:
        self._objectives = problem.optimised
        self._counts: tuple[int, ...] = ()
        self._rate: Array = np.zeros(0)
        self._base: Array | None = None
        self._referred: Array = np.zeros((0, 0))
        self._unit = np.ones(len(self._objectives))

    def row(self, trial: Trial) -> Array:
        """(N,) signed values of a scored trial; NaN where a document was not asked.

        A trial that says nothing about documents has one per objective: its value.

        Raises:
            ConfigError: An objective is a corpus metric.
            StudyError: The documents are not those of the first row.
        """
        assert trial.scores is not None  # noqa: S101
        parts = []
        for o in self._objectives:
            values = trial.scores.per_example.get(o.name, trial.scores.values[o.name])
            if values is None:
                raise no_document_scores(o.name, o.metric, "m2n2")
            parts.append(np.atleast_1d(np.asarray(values, dtype=np.float64)))
        counts = tuple(len(p) for p in parts)
        if not self._counts:
            self._counts = counts
            self._weigh()
        if counts != self._counts:
            raise StudyError(
                f"{trial.name} has {counts} documents for {[o.name for o in self._objectives]}, "
                f"the trials before it {self._counts}; niches need the same documents in every "
                "trial."
            )
        return np.concatenate(parts)

    def refer(self, trial: Trial, row: Array, yardstick: Yardstick) -> None:
        """Takes a told reference: its row, and the yardstick that has been told of it too."""
        if trial.label == BASE:
            self._base = row
        self._referred = np.vstack([self._referred.reshape(-1, len(row)), row])
        self._unit = np.array(yardstick.scale.unit)
        self._weigh()

    def _weigh(self) -> None:
        """(N,) what a unit of value is worth on each document."""
        weights = np.array([o.weight for o in self._objectives])
        if not weights.sum() > 0:
            weights = np.ones(len(weights))
        worth = weights / weights.sum() / self._unit / np.maximum(self._counts, 1)
        self._rate = np.repeat(worth, self._counts)

    def resources(self, rows: Array) -> tuple[Array, Array]:
        """(n, N) scores s and (N,) capacities c of these (n, N) rows."""
        known = np.vstack([self._referred, rows]) if len(self._referred) else rows
        scores = self._gains(known, self._zero(known, rows))
        if not scores[-len(rows) :].any():  # all are behind the base: then the worst is worth 0
            scores = self._gains(known, np.fmin.reduce(rows))
        return scores[-len(rows) :], scores.max(axis=0)

    def _gains(self, rows: Array, zero: Array) -> Array:
        gains = rows - zero
        np.fmax(gains, 0.0, out=gains)  # a document that was not asked (NaN) gives nothing
        gains *= self._rate
        return gains

    def _zero(self, known: Array, rows: Array) -> Array:
        """(N,) values that are worth nothing."""
        if self._base is not None:
            zero = self._base.copy()
        else:
            zero = np.fmin.reduce(self._referred if len(self._referred) else rows)
        for o, end, n in zip(self._objectives, np.cumsum(self._counts), self._counts, strict=True):
            own = slice(end - n, end)
            if o.direction == "maximize" and not (known[:, own] < 0).any():
                zero[own] = 0.0
        return zero
