"""What a search driver is: a fold over told trials.

An optimizer is a function of (problem, told trials in order, pending trials). Nothing about it is
ever pickled: to resume is to build a fresh one and ``tell`` it what the store holds, in told
order. Randomness is keyed by (seed, trial number) through :func:`rng_for`, never by call history.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from evomerge.constraints import Constraints
from evomerge.errors import ConfigError
from evomerge.geometry import Geometry
from evomerge.recipe import Vector
from evomerge.scale import Scale
from evomerge.trial import Objective, Trial, TrialState


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What is to be optimised.

    Attributes:
        dim: Dimension d of the space, >= 1.
        seed: The study's seed, >= 0.
        objectives: The objectives that the search has to know: optimised ones
            (``objective.search``) and constraints (``objective.bound``).
        start: (d,) the space's default point, in [0, 1]^d; copied.
        scalarisation: How a single-objective optimizer makes one number of several; one of
            :data:`evomerge.scale.SCALARISATIONS`.
        geometry: Inner products of the models, where the space is linear in them; else None.

    Raises:
        ConfigError: d < 1, a negative seed, nothing to optimise, or a start outside [0, 1]^d.
        UnknownNameError: An unknown scalarisation.
    """

    dim: int
    seed: int
    objectives: tuple[Objective, ...]
    start: Vector
    scalarisation: str = "mean"
    geometry: Geometry | None = None

    def __post_init__(self) -> None:
        """Checks everything, and takes copies."""
        check_integer("dim", self.dim, 1)
        check_integer("seed", self.seed, 0)
        if not any(o.search for o in self.objectives):
            raise ConfigError("objectives: an optimizer needs at least one searched objective.")
        try:
            start = np.array(self.start, dtype=np.float64)
        except (TypeError, ValueError) as e:
            raise ConfigError(f"start: expected {self.dim} numbers, got {self.start!r}.") from e
        if start.shape != (self.dim,):
            raise ConfigError(f"start: expected shape (dim,) = ({self.dim},), got {start.shape}.")
        if not ((start >= 0) & (start <= 1)).all():
            raise ConfigError(
                f"start: expected a point of [0, 1]^{self.dim}, got {start.tolist()}."
            )
        start.flags.writeable = False
        object.__setattr__(self, "start", start)
        object.__setattr__(self, "objectives", tuple(self.objectives))
        Scale.fit(self.optimised, (), scalarisation=self.scalarisation)

    @property
    def optimised(self) -> tuple[Objective, ...]:
        """The m objectives that are optimised, in declared order."""
        return tuple(o for o in self.objectives if o.search)

    @property
    def bounded(self) -> tuple[Objective, ...]:
        """The c objectives that must keep a bound."""
        return tuple(o for o in self.objectives if o.bound is not None)


class Optimizer(Protocol):
    """Proposes points of [0, 1]^d.

    Every optimizer is built with a :class:`Problem` and its own settings, keyword arguments that
    are the keys of its ``conf/optimizer/*.yaml``.

    Attributes:
        pareto: Whether it searches for a whole front; else it optimises one scalarised number.

    A class may also say (read with ``getattr``, so that most need not):

    * ``max_dim: int``: the most dimensions that it takes; above, it raises ConfigError.
    * ``expensive: bool``: one ask may take a second; the contract suite then runs fewer trials.
    * ``needs_geometry: bool``: it wants :attr:`Problem.geometry` where the space has one.
    * ``needs_documents: bool``: it needs a score per document of every optimised objective.
    * ``note: str``: what its user should know before the search starts, and what it learned when
      the search ends; shown at both times where it is not empty.
    """

    pareto: bool

    def ask(self, n: int, first: int, pending: Sequence[Trial] = ()) -> list[Vector]:
        """Proposes at most ``n`` points, to be numbered ``first``, ``first + 1``, ...

        Args:
            n: How many points are wanted, >= 1.
            first: Number of the first proposed trial.
            pending: Trials asked for and not yet told.

        Returns:
            Points of shape (d,); fewer than ``n`` where the optimizer has to be told something
            first, none at all where it is done. The law: ``ask(n, first, pending)`` equals
            ``ask(1, first, pending)`` followed by ``ask(n - 1, first + 1, pending + that one)``.
        """
        ...

    def tell(self, trials: Sequence[Trial]) -> None:
        """Takes finished trials in told order, FAILED, PRUNED and reference ones included."""
        ...


class Yardstick:
    """Reads trials the way every optimizer should: normalised, and with the constraints in mind.

    It is itself a fold: the told reference points define the units.

    Args:
        problem: Its objectives and scalarisation.

    Attributes:
        scale: Normalises the optimised objectives.
        constraints: The bounds, which may belong to other objectives.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._references: list[Trial] = []
        self._names = tuple(o.name for o in problem.objectives)
        self._fit()

    def tell(self, trial: Trial) -> None:
        """Takes any told trial; a COMPLETE reference point refines the units."""
        if counts(trial) and trial.kind == "reference" and self.is_scored(trial):
            self._references.append(trial)
            self._fit()

    def _fit(self) -> None:
        self.scale = Scale.fit(
            self._problem.optimised,
            self._references,
            scalarisation=self._problem.scalarisation,
        )
        self.constraints = Constraints.fit(self._problem.bounded, self._references)

    def is_scored(self, trial: Trial) -> bool:
        """Whether a trial is COMPLETE and has a finite value for every objective."""
        values = trial.scores.values if trial.scores is not None else {}
        return trial.state is TrialState.COMPLETE and all(
            np.isfinite(values.get(name, np.nan)) for name in self._names
        )

    def is_known(self, trial: Trial) -> bool:
        """Whether a trial is scored, or is PRUNED and has an estimate for every objective."""
        measured = dataclasses.replace(trial, state=TrialState.COMPLETE)  # an estimate reads alike
        pruned = trial.state is TrialState.PRUNED
        return self.is_scored(measured if pruned else trial)

    def is_precise(self, trial: Trial, below: float) -> bool:
        """Whether a PRUNED trial's estimate is good enough to be data for a model.

        Args:
            trial: Any told trial.
            below: Largest standard error in normalised units, of objectives and bounds; 0: never.
        """
        if below == 0 or trial.state is not TrialState.PRUNED or trial.scores is None:
            return False
        errors = trial.scores.stderr
        return self.is_known(trial) and all(
            errors.get(name, np.inf) / unit <= below
            for part in (self.scale, self.constraints)
            for name, unit in zip(part.names, part.unit, strict=True)
        )

    def normalised(self, trial: Trial) -> Vector:
        """(m,) normalised values of the optimised objectives of a scored trial."""
        values = trial.scores.values if trial.scores is not None else {}
        return np.array(list(self.scale.normalise(values).values()), dtype=np.float64)

    def violation(self, trial: Trial) -> float:
        """Total violation of the constraints by a scored trial, >= 0; 0 where it is feasible."""
        return self.constraints.violation(trial.scores.values if trial.scores is not None else {})

    def key(self, trial: Trial) -> tuple[float, float]:
        """Sorts scored trials, best first, for a single-objective optimizer (Deb 2000).

        (violation, -scalarised score): feasible ones by score, then the others by violation.
        """
        values = trial.scores.values if trial.scores is not None else {}
        return self.violation(trial), -self.scale.scalar(values)


def rng_for(seed: int, *keys: int) -> np.random.Generator:
    """A generator for one decision, keyed by (seed, keys), the same in every process.

    Args:
        seed: The study's seed, >= 0.
        keys: What the decision belongs to: usually the trial number; all >= 0.

    Returns:
        A fresh generator.
    """
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=keys))


def counts(trial: Trial) -> bool:
    """Whether a trial is one that search drivers look at: of the search split, no finalist."""
    return trial.split == "search" and trial.kind != "final"


def n_asked(pending: Sequence[Trial]) -> int:
    """How many of the pending trials the optimizer proposed."""
    return sum(t.kind == "search" and counts(t) for t in pending)


def n_useful(n: int, n_design: int, pending: Sequence[Trial]) -> int:
    """How many points a driver with a design proposes at once.

    While a reference point (a warm start) is still being scored, workers get what is left of the
    design, which looks at no score; what comes after it waits for all reference points.

    Args:
        n: How many are wanted.
        n_design: What is left of the design, told and pending trials deducted; may be negative.
        pending: Trials asked for and not yet told.
    """
    waits = any(t.kind == "reference" and counts(t) for t in pending)
    return max(0, min(n, n_design)) if waits else n


def best_and_newest(trials: Sequence[Trial], order: Sequence[int], n: int) -> list[Trial]:
    """At most ``n`` trials, for a model whose fit would cost too much with all of them.

    Args:
        trials: In told order.
        order: Their indices, best first.
        n: How many, >= 2.

    Returns:
        The best half of ``n`` and the newest of the others, in told order.
    """
    if len(trials) <= n:
        return list(trials)
    kept = set(list(order)[: n // 2])
    newest = [i for i in reversed(range(len(trials))) if i not in kept]
    kept |= set(newest[: n - len(kept)])
    return [trials[i] for i in sorted(kept)]


def check_integer(name: str, value: int, low: int) -> None:
    """Raises ConfigError unless ``value`` is an integer >= ``low``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
        raise ConfigError(f"{name}: expected an integer >= {low}, got {value!r}.")


def check_number(name: str, value: float, low: float, high: float = np.inf) -> None:
    """Raises ConfigError unless ``low < value <= high`` and ``value`` is finite."""
    good = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not (good and np.isfinite(value) and low < value <= high):
        upper = f" and <= {high:g}" if np.isfinite(high) else ""
        raise ConfigError(f"{name}: expected a number > {low:g}{upper}, got {value!r}.")
