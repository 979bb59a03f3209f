"""Bayesian optimisation with Gaussian processes, on Optuna's GPSampler.

Acquisition: log expected improvement for one goal (Ament et al. 2023, "Unexpected improvements to
expected improvement for Bayesian optimization", arXiv:2310.20708), log expected hypervolume
improvement for several (Daulton, Balandat & Bakshy 2020, arXiv:2006.05078), each times the
probability that the constraints are kept (Gardner et al. 2014, "Bayesian optimization with
inequality constraints"); conditioned on what is pending, one point after the other.

* GPSampler starts its kernel fits from those of its earlier asks. Here every point is drawn by a
  new sampler, seeded by (seed, trial number), in a new study in memory that holds what was told
  and what is pending: asking is a function of these alone.
* The first ``n_startup`` search trials are a design: ``start``, then scrambled Sobol points. The
  reference points that the space can express are data from the beginning.
* PRUNED trials are estimates, which a GP without per-point noise takes at their word: they are
  data only where their standard error, in normalised units, is at most ``pruned_below``.
* A point told or pending is not proposed again: a Sobol point stands in.
* A fit costs the cube of the number of trials. Above ``max_data`` told ones the better half of
  them and the newest are kept.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence

import numpy as np

from evomerge.errors import ConfigError
from evomerge.optimizers.base import (
    Problem,
    Yardstick,
    best_and_newest,
    check_integer,
    check_number,
    counts,
    n_asked,
    n_useful,
    rng_for,
)
from evomerge.optimizers.design import SobolSequence
from evomerge.optimizers.genetic import is_taken
from evomerge.recipe import Vector
from evomerge.trial import Trial

_MIN_DATA = 2
"""Told trials without which there is no process to fit."""


class Bayesian:
    """Gaussian-process optimisation for one goal or several, with constraints.

    While a reference point is pending, :meth:`ask` returns points of the design only.

    Args:
        problem: What is optimised. One goal is its scalarisation; several objectives are a front.
        n_startup: Search trials of the design, >= 1; None for 2 d, at least 8 and at most 24.
        scalarise: Optimise the scalarisation even where there are several objectives.
        pruned_below: Largest standard error, in normalised units, at which a PRUNED trial's
            estimate is data; 0: never.
        max_data: Most trials that a process is fitted to, >= 10.

    Attributes:
        pareto: True for two objectives or more, unless ``scalarise``.
        expensive: True: an ask takes a second or so; figures in ``conf/optimizer/bayesian.yaml``.

    Raises:
        ConfigError: A setting that does not make sense.
    """

    expensive = True

    def __init__(
        self,
        problem: Problem,
        *,
        n_startup: int | None = None,
        scalarise: bool = False,
        pruned_below: float = 0.1,
        max_data: int = 200,
    ) -> None:
        if n_startup is not None:
            check_integer("n_startup", n_startup, 1)
        check_integer("max_data", max_data, 10)
        if pruned_below != 0:
            check_number("pruned_below", pruned_below, 0)
        if not isinstance(scalarise, bool):
            raise ConfigError(f"scalarise: expected true or false, got {scalarise!r}.")
        self._dim, self._seed, self._start = problem.dim, problem.seed, problem.start
        self._n_startup = n_startup or min(24, max(8, 2 * problem.dim))
        self._pruned_below, self._max_data = float(pruned_below), int(max_data)
        self.pareto = len(problem.optimised) > 1 and not scalarise
        self._yardstick = Yardstick(problem)
        self._names = tuple(o.name for o in problem.optimised)
        self._sobol = SobolSequence(problem.dim, problem.seed, self._n_startup)
        self._n_searched = 0
        self._seen: list[Vector] = []
        self._data: list[Trial] = []

    def ask(self, n: int, first: int, pending: Sequence[Trial] = ()) -> list[Vector]:
        """Proposes ``n`` points of shape (d,), of the design only while a reference is pending."""
        flying = [t for t in pending if counts(t)]
        index = self._n_searched + n_asked(pending)
        waiting = [np.array(t.x, dtype=np.float64) for t in flying if t.x is not None]
        points: list[Vector] = []
        for i in range(n_useful(n, self._n_startup - index, pending)):
            points.append(self._propose(index + i, first + i, [*waiting, *points]))
        return [x.copy() for x in points]

    def tell(self, trials: Sequence[Trial]) -> None:
        """Takes finished trials in told order; scored ones become data."""
        for trial in trials:
            if not counts(trial):
                continue
            self._n_searched += trial.kind == "search"
            self._yardstick.tell(trial)
            if trial.x is None:
                continue
            self._seen.append(np.array(trial.x, dtype=np.float64))
            scored = self._yardstick.is_scored(trial)
            if scored or self._yardstick.is_precise(trial, self._pruned_below):
                self._data.append(trial)

    def _propose(self, index: int, number: int, waiting: Sequence[Vector]) -> Vector:
        """The point of trial ``number``, which comes after ``index`` search trials.

        Args:
            index: How many search trials were told or are pending.
            number: Its own number.
            waiting: Points asked for and not yet told.
        """
        taken = np.array([*self._seen, *waiting], dtype=np.float64).reshape(-1, self._dim)
        if index >= self._n_startup and len(self._data) >= _MIN_DATA:
            x = self._acquire(number, waiting)
            if not is_taken(x, taken):
                return x
        elif index == 0 and not is_taken(self._start, taken):
            return self._start.copy()
        for k in range(max(index - 1, 0), index + len(taken) + 1):
            x = self._sobol[k]
            if not is_taken(x, taken):
                return x
        return rng_for(self._seed, number).random(self._dim)

    def _acquire(self, number: int, waiting: Sequence[Vector]) -> Vector:
        """The point of (d,) with the largest acquisition, by a sampler of its own."""
        import optuna

        axes = [f"x{i}" for i in range(self._dim)]
        unit: optuna.distributions.BaseDistribution
        unit = optuna.distributions.FloatDistribution(0.0, 1.0)
        space: dict[str, optuna.distributions.BaseDistribution] = dict.fromkeys(axes, unit)
        seed = int(rng_for(self._seed, number).integers(2**31))
        with _silent():
            sampler = optuna.samplers.GPSampler(
                seed=seed, n_startup_trials=0, warn_independent_sampling=False
            )
            study = optuna.create_study(
                storage=optuna.storages.InMemoryStorage(),
                sampler=sampler,
                directions=["maximize"] * (len(self._names) if self.pareto else 1),
            )
            for trial in self._kept():
                study.add_trial(
                    optuna.trial.create_trial(
                        params=dict(zip(axes, np.asarray(trial.x).tolist(), strict=True)),
                        distributions=dict(space),
                        values=self._values(trial),
                        constraints=self._slacks(trial),
                    )
                )
            for x in waiting:
                study.add_trial(
                    optuna.trial.create_trial(
                        state=optuna.trial.TrialState.RUNNING,
                        params=dict(zip(axes, x.tolist(), strict=True)),
                        distributions=dict(space),
                    )
                )
            asked = study.ask(fixed_distributions=space)
        point: Vector = np.array([asked.params[a] for a in axes], dtype=np.float64)
        return np.clip(point, 0.0, 1.0)

    def _values(self, trial: Trial) -> list[float]:
        """What is maximised."""
        assert trial.scores is not None  # noqa: S101
        if self.pareto:
            return [float(v) for v in self._yardstick.normalised(trial)]
        return [self._yardstick.scale.scalar(trial.scores.values)]

    def _slacks(self, trial: Trial) -> dict[str, float] | None:
        """Optuna's constraints: feasible where <= 0; None where there are none."""
        constraints = self._yardstick.constraints
        assert trial.scores is not None  # noqa: S101
        if not constraints.names:
            return None
        slacks = constraints.slacks(trial.scores.values)
        return {n: -float(s) for n, s in zip(constraints.names, slacks, strict=True)}

    def _kept(self) -> list[Trial]:
        """The trials that the process is fitted to, in told order."""
        keys = [self._yardstick.key(t) for t in self._data]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        return best_and_newest(self._data, order, self._max_data)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Optuna without log lines and warnings."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)
