"""Grid search: every point once, coarse grids first."""

import numpy as np
import pytest
from optimizer_fakes import MATH, best, make_trial, running, simulate

from evomerge.errors import ConfigError
from evomerge.optimizers.base import Problem
from evomerge.optimizers.grid import Grid


def new(dim=2, seed=0, **settings):
    return Grid(Problem(dim, seed, (MATH,), np.full(dim, 0.5)), **settings)


def cells(points):
    return {tuple(x.tolist()) for x in points}


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_nested_grids(dim):
    points = new(dim).ask(9**dim, 0)
    for n in (2, 3, 5, 9):
        axis = np.linspace(0, 1, n)
        full = {tuple(p) for p in np.stack(np.meshgrid(*[axis] * dim), -1).reshape(-1, dim)}
        assert cells(points[: n**dim]) == full


def test_finite_grid_ends():
    optimizer = new(points_per_axis=4)
    log = simulate(optimizer, lambda x: {"math": float(x[0])}, 100, workers=3)
    assert len(log.told) == 16
    assert len(cells(t.x for t in log.told)) == 16
    assert optimizer.ask(1, 16) == []


def test_optimum_on_the_grid_is_found():
    log = simulate(
        new(points_per_axis=11), lambda x: {"math": -float(np.sum((x - [0.3, 0.9]) ** 2))}, 121
    )
    assert best(log, lambda x: -float(np.sum((x - [0.3, 0.9]) ** 2))) > -1e-20


def test_points_of_references_pending_and_failed_trials_are_left_out():
    optimizer = new(dim=1)
    optimizer.tell([make_trial(0, [1.0], {"math": 1.0}, kind="reference"), make_trial(1, [0.5])])
    points = optimizer.ask(3, 3, (running(2, [0.0]),))
    assert cells(points[:2]) == {(0.25,), (0.75,)}
    assert points[2][0] % 0.25 == 0.125


def test_long_searches_stay_cheap():
    """Ten thousand trials, told one by one."""
    optimizer = new()
    for number in range(10_000):
        optimizer.tell([make_trial(number, optimizer.ask(1, number)[0])])
    assert len(optimizer.ask(5, 10_000)) == 5


@pytest.mark.parametrize("bad", [1, 2.5, "fine"], ids=str)
def test_settings_are_validated(bad):
    with pytest.raises(ConfigError, match="points_per_axis"):
        new(points_per_axis=bad)


def test_four_dimensions_are_refused():
    with pytest.raises(ConfigError, match="at most 3 dimensions, got 4"):
        new(dim=4)
