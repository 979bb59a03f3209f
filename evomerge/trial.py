"""Trials: the one noun that travels between optimizer, executor, store and report."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from evomerge.errors import ConfigError
from evomerge.recipe import Recipe, Vector

Split = Literal["search", "select", "test"]
"""The documents of a task are split once: the search sees the first, the choice between finalists
the second, the final table the third."""

SPLITS: tuple[Split, ...] = ("search", "select", "test")

WAIT = "wait"
"""Of :attr:`Scores.seconds`: what passed without a worker's work."""

Kind = Literal["search", "reference", "final"]


class TrialState(enum.StrEnum):
    """Where a trial stands. The last three are final.

    PRUNED is a trial that lost a race (:mod:`evomerge.racing`): its scores are estimates.
    """

    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAILED = "FAILED"


@dataclasses.dataclass(frozen=True)
class Objective:
    """One number that the user cares about.

    Attributes:
        name: Unique, short: the key of every score mapping (``"math"``).
        task: Name of the lm-eval task, or of what another evaluator measures.
        metric: The task's metric (``"acc"``, ``"bits_per_byte"``, ``"exact_match"``).
        filter: lm-eval filter of that metric; ``"none"`` unless the task defines filters.
        direction: Which way the raw value gets better.
        weight: Share in the weighted-mean scalarisation; >= 0.
        search: Whether the search optimises it. False for a number that is only reported, which is
            scored on the test split alone, unless it has a ``bound``.
        bound: A constraint: what a merge must reach to be feasible, at least (``maximize``) or at
            most (``minimize``). A number in raw units, or a normalised score such as ``"95%"``
            (:mod:`evomerge.scale`: of the best expert's accuracy, or of the gain that the best
            expert makes over the base). None: no constraint.
    """

    name: str
    task: str
    metric: str
    filter: str = "none"
    direction: Literal["maximize", "minimize"] = "maximize"
    weight: float = 1.0
    search: bool = True
    bound: float | str | None = None

    def __post_init__(self) -> None:
        """Raises ConfigError for an unknown direction, a negative weight or an odd bound."""
        if self.direction not in {"maximize", "minimize"}:
            raise ConfigError(
                f"objective {self.name!r}: direction must be 'maximize' or 'minimize', got "
                f"{self.direction!r}."
            )
        if not 0 <= self.weight < math.inf:
            raise ConfigError(f"objective {self.name!r}: weight must be >= 0, got {self.weight}.")
        if self.bound is not None and _bound(self.bound) is None:
            raise ConfigError(
                f"objective {self.name!r}: bound must be a number or a percentage such as '95%', "
                f"got {self.bound!r}."
            )

    @property
    def guides(self) -> bool:
        """Whether the search has to know it: it is optimised, or it must keep a bound."""
        return self.search or self.bound is not None

    @property
    def bound_value(self) -> tuple[float, bool]:
        """The bound as (number, normalised): raw units, or a share such as 0.95 for ``"95%"``.

        Raises:
            ConfigError: There is no bound.
        """
        found = _bound(self.bound)
        if found is None:
            raise ConfigError(f"objective {self.name!r} has no bound.")
        return found

    @property
    def sign(self) -> float:
        """+1 or -1: signed value = sign x raw value, so that higher is better."""
        return 1.0 if self.direction == "maximize" else -1.0


def _bound(given: float | str | None) -> tuple[float, bool] | None:
    """(number, normalised) of a bound; None for what is no bound."""
    share = isinstance(given, str) and given.strip().endswith("%")
    try:
        number = float(given.strip().removesuffix("%") if isinstance(given, str) else given or 0.0)
    except (TypeError, ValueError):
        return None
    if given is None or isinstance(given, bool) or not math.isfinite(number):
        return None
    return (number / 100, True) if share else (number, False)


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """Scores of one candidate on one split.

    Attributes:
        values: Objective name to signed value: HIGHER IS BETTER, finite. The raw value in its own
            direction is ``objective.sign * value``.
        stderr: Objective name to the standard error of that value, >= 0 (NaN: not known): over the
            draw of documents; of an estimate (``asked``) about what all documents would give.
        per_example: Objective name to a float32 array (n_split,) of signed per-document values in
            the split's document order, NaN where not asked; None for a corpus metric.
        seconds: Where the time went: ``{"merge": s, "score": s}`` in the worker, and ``"wait"``
            from its start to its answer besides: for a worker, for the network, for attempts that
            were lost. Empty where it went nowhere: the scores were found in the cache folder.
        asked: How many documents of all tasks were asked before the candidate was stopped; then
            the values are estimates of what all would give. None: all were asked.
    """

    values: Mapping[str, float]
    stderr: Mapping[str, float]
    per_example: Mapping[str, npt.NDArray[np.float32] | None]
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    asked: int | None = None

    @property
    def spent(self) -> float:
        """Seconds that the worker spent; waiting is no work."""
        found = (v for what, v in self.seconds.items() if what != WAIT)
        return float(sum(v for v in found if isinstance(v, int | float) and math.isfinite(v)))


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """One evaluation of one recipe on one split.

    Attributes:
        number: >= 0. One number per recipe that a study tried; a ``final`` trial carries the
            number of the trial that it scores again, so (number, split) is unique.
        kind: ``search``: proposed by the optimizer; ``reference``: scored at the start of every
            study (the base, each expert, ...); ``final``: a finalist on select or test.
        x: (d,) point of [0, 1]^d, or None for a recipe outside the space (optimizers skip it).
        recipe: What was merged.
        state: RUNNING until it is finished.
        scores: None while RUNNING and when FAILED.
        error: Traceback or reason of a FAILED trial.
        attempt: 0 for the first try, one more whenever it was submitted again.
        split: The documents it was scored on.
        label: Name of a reference point (``"base"``, ``"expert math"``); empty otherwise.
        copied_from: Number of an earlier trial with the same recipe whose scores were copied.
        raced_after: How many trials had been told when it was started: the bar that it was raced
            against follows from them (:mod:`evomerge.racing`). None: it is not raced.
    """

    number: int
    kind: Kind
    x: Vector | None
    recipe: Recipe
    state: TrialState = TrialState.RUNNING
    scores: Scores | None = None
    error: str | None = None
    attempt: int = 0
    split: Split = "search"
    label: str = ""
    copied_from: int | None = None
    raced_after: int | None = None

    @property
    def finished(self) -> bool:
        """Whether the state is final."""
        return self.state is not TrialState.RUNNING

    @property
    def name(self) -> str:
        """How people call it: its label, or ``trial N``."""
        return self.label or f"trial {self.number}"


def value_matrix(trials: Sequence[Trial], names: Sequence[str]) -> npt.NDArray[np.float64]:
    """Signed values of COMPLETE trials as a matrix.

    Args:
        trials: n trials, all COMPLETE.
        names: m objective names.

    Returns:
        F of shape (n, m), higher is better.
    """
    rows = [[t.scores.values[name] for name in names] for t in trials if t.scores is not None]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(names))
