"""One run of CMA-ES between two restarts, on pycma, fed with points that come late.

With W workers a point is told after about W others, most often under a later distribution than
the one that it was drawn from. Taken as it is (Hansen 2011, "Injecting external solutions into
CMA-ES", arXiv:1110.4181), it pulls the mean back to where it was. So a late point

* is moved by half of the step that the mean has made since. All of it is too much: two steps taken
  from the same mean overshoot together;
* lengthens the mean's step by its share of ``_STRIDE`` (pycma's learning rate of the mean).

With one worker no point is late, and the run is pycma's own. Tuned on ``bowls`` of
``benchmarks/landscapes.py`` with seeds from 100 on: trials needed for what a synchronous run
reaches, as a ratio (``benchmarks/asynchrony.py``; 24 to 32 seeds, standard errors 0.04 to 0.07):

==================  =====  =====  =====  =====
workers/dimensions  16/12  16/24  64/12  64/24
==================  =====  =====  =====  =====
as they are         1.36   1.15   1.11   1.02
half moved          1.22   1.15   1.14   1.02
and stride 0.3      1.14   1.09   1.14   1.02
and stride 0.5      1.17   1.08
all moved           1.28   1.17   1.29   1.17
==================  =====  =====  =====  =====

With noise a stride of 0.5 ends a little lower than points as they are (-0.003 +- 0.0016 of 1.20;
40 seeds, d = 12), 0.3 does not (+0.0015 +- 0.0014). Where workers outnumber the population much is
gained: 64 of them with the default popsize of 11 end 0.004 below the optimum instead of 0.016
after 800 trials (12 seeds, geometric mean).
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import warnings
from typing import Any

import numpy as np

from evomerge.recipe import Matrix, Vector

_CATCH_UP = 0.5
"""Share of the mean's step since a late point was drawn by which it is moved."""
_STRIDE = 0.3
"""How much longer the mean's step is where all points are late."""
_MEMORY = 20
"""Distributions of the past whose points are known again."""
_SAME = 1e-9
_FLAT_GENERATIONS = 5
"""Generations with tied scores before a restart; pycma's 1 is meant for continuous functions, and
accuracies on few documents tie often."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Gaussian:
    """A distribution in pycma's coordinates; ``axes`` (d, d) are None for variances only."""

    mean: Vector
    stds: Vector
    axes: Matrix | None

    def at(self, z: Vector) -> Vector:
        """Where a standard normal (d,) ``z`` lies."""
        return self.mean + self.stds * (z if self.axes is None else self.axes @ z)


class Run:
    """pycma with the drawing taken out of its hands.

    It insists on an ask before each tell; that ask draws zeros and is thrown away. Its archive
    of sent points is cleared, so that a live run and a replay read the same x the same way.

    Args:
        mean: (d,) first mean, in [0, 1]^d.
        sigma: First standard deviation of every coordinate.
        popsize: Points per update.
        diagonal: Whether to learn variances only.
        tolx: The run ends once every coordinate's standard deviation is below this.

    Attributes:
        popsize: As given.
        updates: How many there were.
    """

    def __init__(
        self, mean: Vector, sigma: float, popsize: int, *, diagonal: bool, tolx: float
    ) -> None:
        self.popsize = popsize
        self.updates = 0
        self._past: collections.deque[_Gaussian] = collections.deque(maxlen=_MEMORY)
        options: dict[str, Any] = {
            "CMA_active_injected": 1,
            "CMA_diagonal": diagonal,
            "CMA_mirrors": 0,  # mirrored points need a say in what is asked
            "bounds": [0.0, 1.0],
            "conditioncov_alleviate": False,  # it would change coordinates; a restart does not
            "popsize": popsize,
            "randn": lambda *shape: np.zeros(shape),
            "seed": np.nan,  # "leave np.random alone"; 0 and None mean the clock
            "signals_filename": None,
            "timeout": np.inf,
            "tolconditioncov": 1e12,
            "tolflatfitness": _FLAT_GENERATIONS,
            "tolx": tolx,
            "verb_disp": 0,
            "verb_log": 0,
            "verbose": -9,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import cma
            from cma.sigma_adaptation import CMAAdaptSigmaCSA

            # By class, since pycma's own choice, two-point adaptation, needs mirrored points.
            options |= {"AdaptSigma": CMAAdaptSigmaCSA, "BoundaryHandler": _bounds()}
            self._es: Any = cma.CMAEvolutionStrategy(mean.copy(), sigma, options)
            self._arm()

    @property
    def mean(self) -> Vector:
        """(d,) the mean of the distribution, in [0, 1]^d."""
        return self._repaired(self._now.mean)

    def point(self, z: Vector) -> Vector:
        """The point of [0, 1]^d that a standard normal (d,) ``z`` stands for."""
        return self._repaired(self._now.at(z))

    def _repaired(self, y: Vector) -> Vector:
        """The point of [0, 1]^d that a point in pycma's coordinates stands for."""
        return np.array(np.clip(self._es.boundary_handler.repair(y), 0.0, 1.0))

    def is_far(self, x: Vector) -> bool:
        """Whether ``x`` is further from the mean than pycma lets an injected point be."""
        d = len(x)
        step = self._es.boundary_handler.inverse(np.array(x, dtype=np.float64)) - self._now.mean
        length = float(self._es.mahalanobis_norm(step))
        return length > float(d**0.5 + 2 * d / (d + 2))

    def update(self, X: Matrix, draws: Matrix, losses: Vector) -> bool:
        """Moves the distribution.

        Args:
            X: (popsize, d) told points.
            draws: (popsize, d) the standard normals that they were made of.
            losses: (popsize,) lower is better, finite.

        Returns:
            False when the run has ended: converged, stagnated, or numerically broken.
        """
        self.updates += 1
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                points, late = self._caught_up(X, draws)
                self._es.sp.cmean = 1.0 + _STRIDE * late
                self._es.tell(points, losses.tolist())
                ended = bool(self._es.stop())
                self._arm()
            except (ArithmeticError, AssertionError, RuntimeError, np.linalg.LinAlgError):
                return False  # pycma's own checks of its matrices
        numbers = np.concatenate([self._now.mean, self._now.stds])
        return not ended and bool(np.isfinite(numbers).all())

    def _caught_up(self, X: Matrix, draws: Matrix) -> tuple[list[Vector], float]:
        """The points, late ones moved after the mean, and the share of late ones."""
        points = [x.copy() for x in X]
        n_late = 0
        for i, (x, z) in enumerate(zip(X, draws, strict=True)):
            origin, y = self._origin(x, z)
            if origin is not None and origin is not self._now:
                n_late += 1
                points[i] = self._repaired(y + _CATCH_UP * (self._now.mean - origin.mean))
        return points, n_late / len(X)

    def _origin(self, x: Vector, z: Vector) -> tuple[_Gaussian | None, Vector]:
        """The distribution that ``x`` was asked under, and ``x`` in pycma's coordinates.

        Told trials do not say when they were asked. But ``z`` is known, so each distribution says
        where it would have put that point. The median, since some axes may have been snapped. None
        for what is not of this run, or older than it remembers.
        """
        for gaussian in reversed(self._past):
            for y in (gaussian.at(z), gaussian.mean):
                if np.median(np.abs(self._repaired(y) - x)) <= _SAME:
                    return gaussian, y
        return None, x

    def _arm(self) -> None:
        """Makes pycma ready for a tell, and reads off what :meth:`point` needs."""
        es = self._es
        es.ask(1)
        es.sent_solutions.clear()
        mean = np.array(es.mean, dtype=np.float64)
        stds = es.sigma * es.sigma_vec.scaling * np.ones(len(mean))
        full = not es.opts["CMA_diagonal"]
        axes = np.array(es.sm.B * es.sm.D, dtype=np.float64) if full else None
        self._now = _Gaussian(mean, stds, axes)
        self._past.append(self._now)


@functools.cache
def _bounds() -> Any:
    """The ``BoundTransform`` of pycma, its inverse taken of all coordinates at once.

    Its own goes through them one by one in Python, for every told point: 0.32 ms a trial at
    d = 200, of which 0.10 are left.
    """
    from cma.boundary_handler import BoundTransform

    class Bounds(BoundTransform):  # type: ignore[misc]
        def inverse(self, x: Any, copy_if_changed: bool = True) -> Any:  # noqa: ARG002
            tf, y = self.bounds_tf, np.array(x, dtype=np.float64)
            low, high, al, au = tf._lb, tf._ub, tf._al, tf._au
            if not ((low <= y) & (y <= high)).all():
                raise ValueError("argument of inverse must be within the given bounds")
            below = (low - al) + 2 * np.sqrt(np.maximum(al * (y - low), 0.0))
            above = (high + au) - 2 * np.sqrt(np.maximum(au * (high - y), 0.0))
            return np.where(y < low + al, below, np.where(y < high - au, y, above))

    return Bounds
