"""Constraints: which candidates are feasible, and by how much the others are not.

An objective with a ``bound`` is a constraint, whether the search also optimises it or not. Slacks
are in normalised units (see :mod:`evomerge.scale`), so that the violations of several constraints
can be added. The order of candidates is Deb's (2000, "An efficient constraint handling method
for genetic algorithms"): a feasible one beats an infeasible one, and of two infeasible ones the
smaller total violation wins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from evomerge.recipe import Vector
from evomerge.scale import Scale
from evomerge.trial import Objective, Split, Trial

_TOLERANCE = 1e-9
"""A bound that is met to rounding is met: an expert keeps "100%" of its own score."""


@dataclasses.dataclass(frozen=True)
class Constraints:
    """The bounds of the objectives that have one.

    Attributes:
        names: The c bounded objectives, in order.
        limit: (c,) signed value that just satisfies each.
        unit: (c,) signed distance that counts as a violation of 1; > 0.
    """

    names: tuple[str, ...]
    limit: tuple[float, ...]
    unit: tuple[float, ...]

    @classmethod
    def fit(
        cls, objectives: Sequence[Objective], trials: Iterable[Trial], split: Split = "search"
    ) -> Constraints:
        """Reads the units, and the bounds in per cent, off the reference points.

        Args:
            objectives: Any objectives; those without a bound are passed over.
            trials: Any trials; only COMPLETE base and expert references of ``split`` count.
            split: Whose scores to read.

        Returns:
            The constraints; without a bound anywhere, none, which everything satisfies.
        """
        bounded = [o for o in objectives if o.bound is not None]
        if not bounded:
            return cls.none()
        scale = Scale.fit(bounded, trials, split)
        limits = []
        for o, zero, unit in zip(bounded, scale.zero, scale.unit, strict=True):
            number, normalised = o.bound_value
            limits.append(zero + number * unit if normalised else o.sign * number)
        return cls(scale.names, tuple(limits), scale.unit)

    @classmethod
    def none(cls) -> Constraints:
        """No constraints: everything is feasible."""
        return cls((), (), ())

    def slacks(self, values: Mapping[str, float]) -> Vector:
        """How far inside each bound a candidate is.

        Args:
            values: Objective name to signed value; must hold every bounded objective.

        Returns:
            (c,) normalised; >= 0 where the bound is kept.
        """
        found = np.array([values[n] for n in self.names], dtype=np.float64)
        slacks: Vector = (found - np.array(self.limit)) / np.array(self.unit)
        return np.where(np.abs(slacks) <= _TOLERANCE, 0.0, slacks)

    def broken(self, values: Mapping[str, float]) -> tuple[str, ...]:
        """Names of the bounds that are not kept; an unknown score keeps none."""
        rows = zip(self.names, self.limit, self.unit, strict=True)
        return tuple(n for n, a, u in rows if Constraints((n,), (a,), (u,)).violation(values) > 0)

    def kept(self, values: Mapping[str, float]) -> bool:
        """Whether every bound is kept."""
        return self.violation(values) == 0

    def violation(self, values: Mapping[str, float]) -> float:
        """Sum of what is missing, >= 0; 0 for a feasible candidate, infinite where not known."""
        if any(not np.isfinite(values.get(n, np.nan)) for n in self.names):
            return float("inf")
        return float(np.maximum(-self.slacks(values), 0.0).sum())
