"""The Pareto front that surrogates predict, and what measuring a point of it is worth."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from evomerge import pareto
from evomerge.optimizers import surrogate
from evomerge.optimizers.base import Problem, Yardstick
from evomerge.optimizers.surrogate import Surrogate
from evomerge.recipe import Matrix, Vector
from evomerge.trial import Trial

_POPULATION = 64
"""Most reference directions, and so members, of NSGA-III."""
_SAMPLES = 2048
"""Points of the objective space over which a gain in hypervolume is averaged."""
_MARGIN = 0.1
"""How far below the observed front the hypervolume's reference corner lies, in shares of it."""
_BLUR, _BLUR_SHARP = 0.005, 0.02
"""Least standard deviation of a prediction in :meth:`PredictedFront.gains`, in shares of the
front; the second where means are taken for the truth."""


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """What surrogates say of k points.

    Attributes:
        mean: (k, m) normalised values of the optimised objectives.
        deviation: (k, m) standard deviations of them.
        slack: (k, c) of the constraints.
        slack_deviation: (k, c).
    """

    mean: Matrix
    deviation: Matrix
    slack: Matrix
    slack_deviation: Matrix

    def feasible(self) -> Vector:
        """(k,) probability that all constraints are kept, as if they were independent."""
        from scipy.special import ndtr

        spread = np.maximum(self.slack_deviation, 1e-6)
        chance: Vector = ndtr(self.slack / spread).prod(axis=1)
        return chance


class PredictedFront:
    """Surrogates of all objectives, fitted to some trials.

    Args:
        problem: Its objectives.
        yardstick: The units.
        trials: n >= 1 scored trials with an x.
        kinds: See :func:`evomerge.optimizers.surrogate.fit`.
        links: Likewise.
        optimism: Standard deviations added to the means that are searched; None to take the
            surrogates' means for the truth.

    Attributes:
        models: Objective name to its surrogate, of raw values in the objective's direction.
        is_flat: Whether no surrogate beats the mean: nothing that could guide a search.
    """

    def __init__(
        self,
        problem: Problem,
        yardstick: Yardstick,
        trials: Sequence[Trial],
        *,
        kinds: Sequence[str],
        links: Sequence[str],
        optimism: float | None,
    ) -> None:
        self._problem, self._trials, self._optimism = problem, trials, optimism
        self._yardstick = yardstick
        self._scale, self._constraints = yardstick.scale, yardstick.constraints
        self._X: Matrix = np.array([t.x for t in trials], dtype=np.float64)
        self.models: dict[str, Surrogate] = {}
        for o in problem.objectives:
            raw = np.array([o.sign * t.scores.values[o.name] for t in trials if t.scores])
            self.models[o.name] = surrogate.fit(self._X, raw, kinds=kinds, links=links)
        self.is_flat = all(m.name == surrogate.CONSTANT for m in self.models.values())

    def predict(self, X: Matrix) -> Prediction:
        """Normalised values and slacks at points (k, d)."""
        found = {}
        for o in self._problem.objectives:
            mean, deviation = self.models[o.name].predict(X)
            found[o.name] = o.sign * mean, deviation
        if self._optimism is None:
            found = {name: (mean, np.zeros_like(mean)) for name, (mean, _) in found.items()}

        def in_units(
            names: Sequence[str], zero: Sequence[float], unit: Sequence[float]
        ) -> tuple[Matrix, Matrix]:
            means = [(found[n][0] - z) / u for n, z, u in zip(names, zero, unit, strict=True)]
            deviations = [found[n][1] / u for n, u in zip(names, unit, strict=True)]
            shape = (len(names), len(X))
            return np.reshape(means, shape).T, np.reshape(deviations, shape).T

        scale, limits = self._scale, self._constraints
        return Prediction(
            *in_units(scale.names, scale.zero, scale.unit),
            *in_units(limits.names, limits.limit, limits.unit),
        )

    def search(self, n_generations: int, rng: np.random.Generator) -> Matrix:
        """NSGA-III on the surrogates (Deb & Jain 2014, IEEE TEC 18(4)), within [0, 1]^d.

        Args:
            n_generations: How many generations.
            rng: The only source of chance.

        Returns:
            (k, d) its last population: the predicted front and what is close to it.
        """
        from pymoo.algorithms.moo.nsga3 import NSGA3
        from pymoo.algorithms.soo.nonconvex.ga import GA
        from pymoo.core.problem import Problem as Pymoo
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM
        from pymoo.termination import get_termination

        d, m, c = self._X.shape[1], len(self._scale.names), len(self._constraints.names)
        front, optimism = self, self._optimism or 0.0

        class Predicted(Pymoo):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__(n_var=d, n_obj=m, n_ieq_constr=c, xl=0.0, xu=1.0)

            def _evaluate(self, X: Matrix, out: dict[str, Any], *_: Any, **__: Any) -> None:
                p = front.predict(X)
                out["F"] = -(p.mean + optimism * p.deviation)
                if c:
                    out["G"] = -(p.slack + optimism * p.slack_deviation)

        directions = _directions(m)
        size = max(32, len(directions))
        settings: dict[str, Any] = {
            "pop_size": size,
            "sampling": self._first_population(size, rng),
            "crossover": SBX(eta=10, prob=0.9),
            "mutation": PM(eta=10, prob=0.9, prob_var=min(0.5, 1 / d)),
        }
        algorithm = GA(**settings) if m == 1 else NSGA3(ref_dirs=directions, **settings)
        algorithm.setup(
            Predicted(),
            termination=get_termination("n_gen", n_generations),
            seed=int(rng.integers(2**31)),
        )
        while algorithm.has_next():
            algorithm.next()
        return np.clip(np.atleast_2d(algorithm.pop.get("X")).astype(np.float64), 0.0, 1.0)

    def gains(
        self, pool: Matrix, waiting: Matrix, known: Matrix, rng: np.random.Generator
    ) -> Vector:
        """What measuring a point is worth: hypervolume gained, times the chance to be feasible.

        The hypervolume is an average over points z of the objective space; what a candidate gains
        is the probability that it dominates a z that nothing known does (Emmerich, Giannakoglou &
        Naujoks 2006, IEEE TEC 10(4)), less the probability that a pending point does.

        Args:
            pool: (k, d) candidates, k >= 1.
            waiting: (p, d) pending points.
            known: (n, m) normalised values of the feasible trials.
            rng: Draws the z.

        Returns:
            (k,) >= 0, in arbitrary units.
        """
        p = self.predict(pool)
        front = known[pareto.non_dominated(known)] if len(known) else known
        high = np.vstack([front, p.mean + 2 * p.deviation]).max(axis=0)
        low = (front if len(front) else p.mean).min(axis=0)
        span = np.maximum(high - low, 1e-9)
        low = low - _MARGIN * span
        Z = low + rng.random((_SAMPLES, len(span))) * (high + 0.01 * span - low)
        if len(front):
            Z = Z[~(front[:, None, :] >= Z).all(axis=2).any(axis=0)]
        # A step is blurred a little, so that z between two candidates tell them apart.
        blur = (_BLUR_SHARP if self._optimism is None else _BLUR) * span
        weights = np.ones(len(Z))
        if len(waiting):
            w = self.predict(waiting)
            covers = _dominates(w.mean, np.hypot(w.deviation, blur), Z)
            weights = np.prod(1.0 - w.feasible()[:, None] * covers, axis=0)
        found: Vector = _dominates(p.mean, np.hypot(p.deviation, blur), Z) @ weights
        return p.feasible() * found

    def _first_population(self, size: int, rng: np.random.Generator) -> Matrix:
        """(size, d) the best half of the trials, at most half of it; the rest is uniform."""
        X = self._X[best_first(self._trials, self._yardstick)][: size // 2]
        return np.vstack([X, rng.random((size - len(X), X.shape[1]))])


def best_first(trials: Sequence[Trial], yardstick: Yardstick) -> npt.NDArray[np.int64]:
    """Order of scored trials: by violation, then by rank of domination."""
    violation = np.array([yardstick.violation(t) for t in trials])
    ranks = pareto.ranks(np.array([yardstick.normalised(t) for t in trials]))
    return np.lexsort((ranks, violation))


def _dominates(mean: Matrix, deviation: Matrix, Z: Matrix) -> Matrix:
    """(k, s) probability that each of k predicted points (k, m) dominates each z of (s, m)."""
    from scipy.special import ndtr

    chance: Matrix = ndtr((mean[:, None, :] - Z) / deviation[:, None, :]).prod(axis=2)
    return chance


@functools.cache
def _directions(m: int) -> Matrix:
    """The finest Das-Dennis reference directions (r, m) with at most _POPULATION of them."""
    from pymoo.util.ref_dirs import get_reference_directions

    steps = 1
    while m > 1 and math.comb(steps + m, m - 1) <= _POPULATION:
        steps += 1
    found: Matrix = np.array(get_reference_directions("das-dennis", m, n_partitions=steps))
    return found
