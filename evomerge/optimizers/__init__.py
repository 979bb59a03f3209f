"""Search drivers: one algorithm, one file, each a fold over told trials.

=====================  ===========================================================================
``base``               the :class:`~evomerge.optimizers.base.Optimizer` protocol and ``rng_for``
``random_search``      :class:`~evomerge.optimizers.random_search.Random`: uniform, the yardstick
``cma_es``             :class:`~evomerge.optimizers.cma_es.CmaEs`: one scalarised score, on pycma
``nsga2``              :class:`~evomerge.optimizers.nsga2.Nsga2`: a Pareto front, on pymoo
=====================  ===========================================================================

A file is found by its ``conf/optimizer/*.yaml``; nothing is imported here beyond numpy, since
pycma alone takes seconds. To add one: the file, the configuration, and a test with a known
optimum; the contract suite in ``tests/optimizers/test_contract.py`` finds it by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.errors import ConfigError
from evomerge.recipe import Vector
from evomerge.trial import Objective, Trial


def check_problem(
    dim: int, seed: int, objectives: Sequence[Objective], start: Vector
) -> tuple[int, int, tuple[Objective, ...], Vector]:
    """Checks what every optimizer is built with.

    Args:
        dim: Dimension d of the space.
        seed: The study's seed.
        objectives: The searched objectives.
        start: (d,) point of [0, 1]^d.

    Returns:
        The same four, with ``start`` as a float64 copy.

    Raises:
        ConfigError: d < 1, a negative seed, no objective, or a start outside [0, 1]^d.
    """
    check_integer("dim", dim, 1)
    check_integer("seed", seed, 0)
    if not objectives:
        raise ConfigError("objectives: an optimizer needs at least one searched objective.")
    try:
        point = np.array(start, dtype=np.float64)
    except (TypeError, ValueError) as e:
        raise ConfigError(f"start: expected {dim} numbers, got {start!r}.") from e
    if point.shape != (dim,):
        raise ConfigError(f"start: expected shape (dim,) = ({dim},), got {point.shape}.")
    if not ((point >= 0) & (point <= 1)).all():
        raise ConfigError(f"start: expected a point of [0, 1]^{dim}, got {point.tolist()}.")
    return int(dim), int(seed), tuple(objectives), point


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


def counts(trial: Trial) -> bool:
    """Whether a trial is one that search drivers look at: of the search split, no finalist."""
    return trial.split == "search" and trial.kind != "final"


def awaits_reference(pending: Sequence[Trial]) -> bool:
    """Whether a reference point (a warm start) is still being scored."""
    return any(t.kind == "reference" and counts(t) for t in pending)
