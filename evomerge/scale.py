"""Normalised scores: what makes two tasks comparable.

A score is shown raw, and normalised against the reference points of the same study:

* an accuracy-like objective (``maximize``): as a share of the best expert's score, since zero
  means that nothing is known;
* a loss (``minimize``): as gain recovered, (score - base) / (best expert - base), so that 0 is the
  base model and 1 the best expert of that task.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from evomerge.trial import Objective, Scores, Split, Trial, TrialState

BASE = "base"
"""Label of the reference trial that is the base model alone."""
EXPERT = "expert "
"""Prefix of the labels of the reference trials that are one expert alone."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """Maps signed values to normalised ones: (value - zero) / unit, per objective.

    Attributes:
        names: The m objectives, in order.
        zero: (m,) signed value that becomes 0.
        unit: (m,) distance that becomes 1; > 0.
        weights: (m,) shares in :meth:`mean`; they sum to 1.
    """

    names: tuple[str, ...]
    zero: tuple[float, ...]
    unit: tuple[float, ...]
    weights: tuple[float, ...]

    @classmethod
    def fit(
        cls, objectives: Sequence[Objective], trials: Iterable[Trial], split: Split = "search"
    ) -> Scale:
        """Reads the scale off the base and expert references among ``trials``.

        Args:
            objectives: What to normalise; all must have been scored on ``split``.
            trials: Any trials; only COMPLETE base and expert references of ``split`` count.
            split: Whose scores to read.

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
