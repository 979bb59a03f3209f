"""Normalised scores: what makes two tasks comparable.

A score is shown raw, and normalised against the reference points of the same study:

* an accuracy-like objective (``maximize``): as a share of the best expert's score, since zero
  means that nothing is known;
* a loss (``minimize``): as gain recovered, (score - base) / (best expert - base), so that 0 is the
  base model and 1 the best expert of that task.

One number out of several is a scalarisation of the normalised scores (Miettinen 1999, "Nonlinear
multiobjective optimization"): ``mean``, the weighted mean; ``worst``, the worst task; or
``chebyshev``, the augmented weighted Chebyshev distance to the point where every task scores 1
(Steuer & Choo 1983), which unlike the mean reaches points in the dents of a front.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from evomerge.errors import unknown_name
from evomerge.recipe import Vector
from evomerge.trial import Objective, Scores, Split, Trial, TrialState

BASE = "base"
"""Label of the reference trial that is the base model alone."""
EXPERT = "expert "
"""Prefix of the labels of the reference trials that are one expert alone."""
SCALARISATIONS = ("mean", "worst", "chebyshev")
_AUGMENTATION = 0.05
"""Weight of the mean in ``worst`` and ``chebyshev``: of two candidates with the same worst task,
the one that is better elsewhere wins."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """Maps signed values to normalised ones: (value - zero) / unit, per objective.

    Attributes:
        names: The m objectives, in order.
        zero: (m,) signed value that becomes 0.
        unit: (m,) distance that becomes 1; > 0.
        weights: (m,) shares in :meth:`mean`; they sum to 1.
        scalarisation: What :meth:`scalar` is: one of :data:`SCALARISATIONS`.
    """

    names: tuple[str, ...]
    zero: tuple[float, ...]
    unit: tuple[float, ...]
    weights: tuple[float, ...]
    scalarisation: str = "mean"

    def __post_init__(self) -> None:
        """Raises UnknownNameError for an unknown scalarisation."""
        if self.scalarisation not in SCALARISATIONS:
            raise unknown_name("scalarisation", self.scalarisation, SCALARISATIONS)

    @classmethod
    def fit(
        cls,
        objectives: Sequence[Objective],
        trials: Iterable[Trial],
        split: Split = "search",
        scalarisation: str = "mean",
    ) -> Scale:
        """Reads the scale off the base and expert references among ``trials``.

        Args:
            objectives: What to normalise; all must have been scored on ``split``.
            trials: Any trials; only COMPLETE base and expert references of ``split`` count.
            split: Whose scores to read.
            scalarisation: One of :data:`SCALARISATIONS`.

        Returns:
            The scale. Without references it is the identity for accuracies and losses alike;
            where no expert beats the base on a loss, the unit is the base's own loss.
        """
        base: Scores | None = None
        experts: list[Scores] = []
        for trial in trials:
            if trial.split != split or trial.state is not TrialState.COMPLETE or not trial.scores:
                continue
            if trial.label == BASE:
                base = trial.scores
            elif trial.label.startswith(EXPERT):
                experts.append(trial.scores)
        zeros, units = [], []
        for o in objectives:
            best = max((s.values[o.name] for s in experts if o.name in s.values), default=None)
            start = base.values.get(o.name) if base else None
            if o.direction == "maximize":
                zero = 0.0
                unit = best if best is not None and best > 0 else 1.0
            else:
                zero = start if start is not None else 0.0
                unit = best - zero if best is not None and start is not None else 1.0
                if not unit > 1e-9 * max(1.0, abs(zero)):
                    unit = abs(zero) or 1.0
            zeros.append(zero)
            units.append(unit)
        total = sum(o.weight for o in objectives) or 1.0
        return cls(
            names=tuple(o.name for o in objectives),
            zero=tuple(zeros),
            unit=tuple(units),
            weights=tuple(o.weight / total for o in objectives),
            scalarisation=scalarisation,
        )

    def normalise(self, values: Mapping[str, float]) -> dict[str, float]:
        """Signed values to normalised ones, for every objective of the scale."""
        return {
            n: (values[n] - z) / u
            for n, z, u in zip(self.names, self.zero, self.unit, strict=True)
        }

    def mean(self, values: Mapping[str, float]) -> float:
        """Weighted mean of the normalised values."""
        return float(np.dot(self.weights, list(self.normalise(values).values())))

    @property
    def title(self) -> str:
        """What :meth:`scalar` is called in tables: ``"mean"``, ``"worst task"``, ..."""
        return {"mean": "mean", "worst": "worst task", "chebyshev": "Chebyshev"}[
            self.scalarisation
        ]

    def scalar(self, values: Mapping[str, float]) -> float:
        """The one number that a single-objective search maximises.

        ``mean``: :meth:`mean`. ``worst``: the lowest normalised score among the objectives with a
        weight, plus 0.05 times the mean. ``chebyshev``: 1 + min_i m w_i (f_i - 1) + 0.05 times
        the mean, with m weights w that sum to 1: equal weights make it ``worst``.
        """
        return float(self.scalars(np.array(list(self.normalise(values).values()))))

    def scalars(self, normalised: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """:meth:`scalar` of many at once.

        Args:
            normalised: (..., m) normalised values.

        Returns:
            (...) the one number of each.
        """
        weights = np.array(self.weights)
        mean: npt.NDArray[np.float64] = normalised @ weights
        if self.scalarisation == "mean":
            return mean
        f = normalised[..., weights > 0]
        weights = weights[weights > 0]
        if self.scalarisation == "chebyshev":
            f = 1 + weights * len(weights) * (f - 1)
        worst: npt.NDArray[np.float64] = f.min(axis=-1) + _AUGMENTATION * mean
        return worst

    def terms(self) -> list[tuple[Vector, float]]:
        """The combinations of signed values whose minimum is :meth:`scalar`.

        Returns:
            (m,) weights a and a constant c of each: its value is ``a @ values + c``.
        """
        zero, unit, weights = (np.array(v) for v in (self.zero, self.unit, self.weights))
        mean = weights / unit, -float(weights @ (zero / unit))
        if self.scalarisation == "mean":
            return [mean]
        found = []
        for i in np.flatnonzero(weights > 0):
            factor = weights[i] * (weights > 0).sum() if self.scalarisation == "chebyshev" else 1.0
            a = _AUGMENTATION * mean[0]
            a[i] += factor / unit[i]
            c = (1 - factor) - factor * zero[i] / unit[i] + _AUGMENTATION * mean[1]
            found.append((a, float(c)))
        return found
