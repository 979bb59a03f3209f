"""CMA-ES as an asynchronous fold, on pycma.

Hansen (2016), "The CMA evolution strategy: a tutorial", arXiv:1604.00772. Restarts: Auger & Hansen
(2005), IPOP-CMA-ES; Hansen (2009), BIPOP-CMA-ES. Variances only in many dimensions: Ros & Hansen
(2008), sep-CMA-ES. Late points: Hansen (2011), "Injecting external solutions into CMA-ES",
arXiv:1110.4181.

* Trial number k is ``mean + sigma * B D z``, with z drawn from (seed, k): ask never waits, and
  what is pending does not matter.
* Every ``popsize`` told trials, in told order, make one update of (mean, sigma, C). A point asked
  under an earlier distribution enters the generation that is open when it is told, at most as
  long as pycma lets an injected point be (Mahalanobis length sqrt(d) + 2 d / (d + 2)).
* FAILED trials say nothing about how good a point is, so they are no part of a generation: no
  median stands in for them. PRUNED ones are, below every COMPLETE one, by their estimate.
* Noise: every candidate answers the same documents, so its score is repeatable and asking again
  would buy nothing; what is left is the luck of one set of documents. Against that, one trial per
  generation is the mean of the distribution itself (``evaluate_mean``), which no single lucky
  score can move far. Measured on a bowl scored by 50 to 400 documents, d = 6, 12 and 24, 100 and
  200 trials, 16 seeds each: the accuracy of the final choice rose in 14 of 18 settings, by 0.008
  on average and by 0.02 in three of the six at d = 24; a doubled popsize was worse than either.
  Without noise it gains too: the gap on a rotated ellipsoid after 200 trials, median of 12 seeds,
  is 0.0045 instead of 0.0087 at d = 12.
* Only the order of a generation counts: feasible trials by score, then those that break a
  constraint, by how much (Deb 2000).
* Bounds: pycma's ``BoundTransform``. The search runs in coordinates that are [0, 1]'s own except
  within 0.05 of a bound, where they are stretched quadratically, and folded back beyond it. Every
  x asked lies in [0, 1]^d, and the update reads that x, never an unclipped one. Measured against
  reflection, projection and drawing again (median gap to the optimum of 6 runs without restarts,
  d = 6, 600 trials, half the coordinates best past a bound): 4e-5 against 4e-3, 1e-3 and 3e-4.
  Within 200 trials projection is as good; later it has frozen coordinates. Reflection pushes away
  from the bound, and drawing again dies out as more bounds are active. Many merges have their
  optimum there: 0 is an expert left out.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from evomerge.errors import ConfigError, unknown_name
from evomerge.optimizers.base import (
    Problem,
    Yardstick,
    check_integer,
    check_number,
    counts,
    n_asked,
    rng_for,
)
from evomerge.recipe import Vector
from evomerge.trial import Trial, TrialState

RESTARTS = ("ipop", "bipop", "none")
_RESTART = 1
"""Second key of a restart's generator; a trial's generator has only one."""
_FLAT_GENERATIONS = 5
"""Generations with tied scores before a restart; pycma's 1 is meant for continuous functions, and
accuracies on few documents tie often."""


class CmaEs:
    """CMA-ES on the scalarised normalised scores.

    The mean starts at the best told reference point that lies in the space, else at ``start``. A
    reference point counts as told first, whenever it is told: the trials told before it enter the
    generations again, from the better start. So ask need not wait for reference points either. On
    64 workers that costs some trials and saves the wait for the slowest reference point: see
    docs/scale.md.

    Args:
        problem: What is optimised.
        sigma0: First standard deviation of every coordinate, in units of the box; in (0, 1].
        popsize: Trials per generation, >= 3; None for 4 + floor(3 ln d).
        diagonal_above: Learn variances only (no covariances) where d is above this.
        tolx: Restart once every coordinate's standard deviation is below this; > 0.
        restart_growth: Factor on popsize at each restart, >= 1; IPOP doubles it.
        restarts: ``"ipop"``: each restart has a larger population; ``"bipop"``: large populations
            alternate with small ones that have a small random step (Hansen 2009), whichever has
            spent fewer trials; ``"none"``: goes on for ever where it converged.
        evaluate_mean: Whether one trial per generation is the mean of the distribution.

    Raises:
        ConfigError: A setting that does not make sense.
    """

    pareto = False

    def __init__(
        self,
        problem: Problem,
        *,
        sigma0: float = 0.2,
        popsize: int | None = None,
        diagonal_above: int = 30,
        tolx: float = 1e-5,
        restart_growth: float = 2.0,
        restarts: str = "ipop",
        evaluate_mean: bool = True,
    ) -> None:
        self._dim, self._seed = problem.dim, problem.seed
        check_number("sigma0", sigma0, 0, 1)
        if popsize is not None:
            check_integer("popsize", popsize, 3)
        check_integer("diagonal_above", diagonal_above, 0)
        check_number("tolx", tolx, 0, 1)
        check_number("restart_growth", restart_growth, 0)
        if restart_growth < 1:
            raise ConfigError(f"restart_growth: expected a number >= 1, got {restart_growth!r}.")
        self._sigma0, self._tolx, self._growth = float(sigma0), float(tolx), float(restart_growth)
        if restarts not in RESTARTS:
            raise unknown_name("value of restarts", str(restarts), RESTARTS)
        if not isinstance(evaluate_mean, bool):
            raise ConfigError(f"evaluate_mean: expected true or false, got {evaluate_mean!r}.")
        self._kind, self._evaluate_mean = restarts, evaluate_mean
        self._popsize = popsize or 4 + int(3 * np.log(problem.dim))
        self._diagonal = problem.dim > diagonal_above
        self._yardstick = Yardstick(problem)
        self._start: Vector = problem.start
        self._warm: list[Trial] = []
        self._searched: list[Trial] = []
        self._moved = False  # whether a reference point was told after a search trial
        self._begin()

    def _begin(self) -> None:
        """The first run, at the best reference point told so far that lies in the space."""
        self._generation: list[Trial] = []
        self._restarts = 0
        self._n_searched = 0
        self._spent = {True: 0, False: 0}  # trials of runs with large and with small populations
        self._n_large, self._is_large = 0, True
        start = self._start
        if self._warm:
            start = np.array(min(self._warm, key=self._yardstick.key).x, dtype=np.float64)
        self._run = self._new_run(start, self._sigma0, self._popsize)

    def ask(self, n: int, first: int, pending: Sequence[Trial] = ()) -> list[Vector]:
        """Proposes ``n`` points of shape (d,); never fewer, whatever is pending."""
        flying = [t for t in pending if counts(t)]
        position = self._n_searched + n_asked(pending)
        taken = [t.x for t in (*self._generation, *flying) if t.x is not None]
        points: list[Vector] = []
        for i in range(n):
            x = self._run.point(rng_for(self._seed, first + i).standard_normal(self._dim))
            if (
                self._evaluate_mean
                and self._run.updates
                and not (position + i) % self._run.popsize
            ):
                mean = self._run.mean
                x = x if any(np.array_equal(mean, t) for t in (*taken, *points)) else mean
            points.append(x)
        return points

    def tell(self, trials: Sequence[Trial]) -> None:
        """Takes finished trials in told order."""
        for trial in trials:
            if not counts(trial):
                continue
            if trial.kind == "reference":
                self._refer(trial)
            else:
                self._searched.append(trial)
                self._take(trial)

    def _refer(self, trial: Trial) -> None:
        """A reference point counts as told first: what was told before it enters again."""
        if not self._yardstick.is_scored(trial):
            return
        self._yardstick.tell(trial)
        if trial.x is not None:
            self._warm.append(trial)
        self._moved = bool(self._searched)
        self._begin()
        for earlier in self._searched:
            self._take(earlier)

    def _take(self, trial: Trial) -> None:
        """A search trial; each full generation moves the distribution."""
        self._n_searched += 1
        if self._enters(trial):
            self._generation.append(trial)
            if len(self._generation) >= self._run.popsize:
                self._close_generation()

    def _enters(self, trial: Trial) -> bool:
        """Whether a told search trial is part of a generation."""
        if trial.x is None or trial.state not in {TrialState.COMPLETE, TrialState.PRUNED}:
            return False
        if trial.state is TrialState.COMPLETE and not self._yardstick.is_scored(trial):
            return False
        # After a restart, what was still in flight belongs to the run before: its points lie far
        # off, and the best of them would pull the new mean straight back. So would points that
        # were asked before a reference point had moved the first mean.
        fresh = self._run.updates == 0 and (self._restarts > 0 or self._moved)
        return not (fresh and self._run.is_far(trial.x))

    def _close_generation(self) -> None:
        """One update from the open generation, and a restart where the run has ended."""
        X = np.array([t.x for t in self._generation], dtype=np.float64)
        losses = _losses(self._generation, self._yardstick)
        self._generation = []
        self._spent[self._is_large] += len(X)
        if not self._run.update(X, losses):
            self._restart()

    def _restart(self) -> None:
        """Begins anew elsewhere, as ``restarts`` says; with ``none``, around the same mean."""
        self._restarts += 1
        rng = rng_for(self._seed, self._restarts, _RESTART)
        mean, sigma = rng.random(self._dim), self._sigma0
        if self._kind == "none":
            self._run = self._new_run(self._run.mean, sigma, self._popsize)
            return
        self._is_large = self._kind == "ipop" or self._spent[True] <= self._spent[False]
        if self._is_large:
            self._n_large += 1
            popsize = int(self._popsize * self._growth**self._n_large)
        else:  # between the default and half the large population, with steps down to a hundredth
            ratio = max(1.0, self._growth**self._n_large / 2)
            popsize = max(3, int(self._popsize * ratio ** (rng.random() ** 2)))
            sigma *= float(10.0 ** (-2 * rng.random()))
        self._run = self._new_run(mean, sigma, popsize)

    def _new_run(self, mean: Vector, sigma: float, popsize: int) -> _Run:
        return _Run(mean, sigma, popsize, diagonal=self._diagonal, tolx=self._tolx)


class _Run:
    """One run of pycma between two restarts, with the drawing taken out of its hands.

    pycma insists on an ask before each tell; that ask draws zeros and is thrown away. Its archive
    of sent points is cleared, so that a live run and a replay read the same x the same way.
    """

    def __init__(
        self, mean: Vector, sigma: float, popsize: int, *, diagonal: bool, tolx: float
    ) -> None:
        self.popsize = popsize
        self.updates = 0
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
        return self.point(np.zeros(len(self._mean)))

    def point(self, z: Vector) -> Vector:
        """The point of [0, 1]^d that a standard normal (d,) ``z`` stands for."""
        step = z if self._axes is None else self._axes @ z
        y = self._mean + self._stds * step
        return np.array(np.clip(self._es.boundary_handler.repair(y), 0.0, 1.0))

    def is_far(self, x: Vector) -> bool:
        """Whether ``x`` is further from the mean than pycma lets an injected point be."""
        d = len(x)
        step = self._es.boundary_handler.inverse(np.array(x, dtype=np.float64)) - self._mean
        length = float(self._es.mahalanobis_norm(step))
        return length > float(d**0.5 + 2 * d / (d + 2))

    def update(self, X: npt.NDArray[np.float64], losses: npt.NDArray[np.float64]) -> bool:
        """Moves the distribution.

        Args:
            X: (popsize, d) told points.
            losses: (popsize,) lower is better, finite.

        Returns:
            False when the run has ended: converged, stagnated, or numerically broken.
        """
        self.updates += 1
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                self._es.tell([x.copy() for x in X], losses.tolist())
                ended = bool(self._es.stop())
                self._arm()
            except (ArithmeticError, AssertionError, RuntimeError, np.linalg.LinAlgError):
                return False  # pycma's own checks of its matrices
        numbers = np.concatenate([self._mean, self._stds])
        return not ended and bool(np.isfinite(numbers).all())

    def _arm(self) -> None:
        """Makes pycma ready for a tell, and reads off what :meth:`point` needs."""
        es = self._es
        es.ask(1)
        es.sent_solutions.clear()
        self._mean: Vector = np.array(es.mean, dtype=np.float64)
        self._stds: Vector = es.sigma * es.sigma_vec.scaling * np.ones(len(self._mean))
        full = not es.opts["CMA_diagonal"]
        self._axes = np.array(es.sm.B * es.sm.D, dtype=np.float64) if full else None


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


def _losses(trials: Sequence[Trial], yardstick: Yardstick) -> npt.NDArray[np.float64]:
    """Losses of one generation: feasible, infeasible, PRUNED by estimate, then the rest.

    Args:
        trials: n COMPLETE or PRUNED trials.
        yardstick: Reads their scores.

    Returns:
        (n,) finite, lower is better: -score for feasible COMPLETE trials. The others come after
        the worst of those; pycma uses their order alone, and equal ones stay equal.
    """
    keys = []
    for t in trials:
        measured = dataclasses.replace(t, state=TrialState.COMPLETE)  # an estimate is read alike
        known = yardstick.is_scored(measured)
        violation, loss = yardstick.key(measured) if known else (np.inf, 0.0)
        pruned = t.state is TrialState.PRUNED
        # Nothing is known of the feasibility of a PRUNED trial but its estimate.
        keys.append((2.0 + (not known) if pruned else float(violation > 0), violation, loss))
    feasible = [k[2] for k in keys if k[0] == 0]
    worst = max(feasible, default=0.0)
    step = max(1.0, abs(worst)) * 1e-3
    later = {k: i for i, k in enumerate(sorted({k for k in keys if k[0] > 0}), start=1)}
    return np.array([k[2] if k[0] == 0 else worst + later[k] * step for k in keys])
