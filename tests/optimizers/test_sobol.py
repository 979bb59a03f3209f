"""Sobol search: the sequence, whatever else happens."""

import numpy as np
import pytest
from optimizer_fakes import MATH, make_trial, running

from evomerge.errors import ConfigError
from evomerge.optimizers.base import Problem
from evomerge.optimizers.sobol import Sobol


def new(dim=2, seed=0):
    return Sobol(Problem(dim, seed, (MATH,), np.full(dim, 0.5)))


def test_one_point_in_each_box():
    x = np.array(new().ask(64, 3))
    assert len({tuple(cell) for cell in (x * 8).astype(int)}) == 64


def test_better_than_random_as_an_integration_rule():
    """The known optimum of a design: the mean of x1 * x2 is 0.25."""
    errors = [abs(np.prod(new(seed=s).ask(256, 0), axis=1).mean() - 0.25) for s in range(5)]
    random = [abs(np.random.default_rng(s).random((256, 2)).prod(axis=1).mean() - 0.25)
              for s in range(5)]  # fmt: skip
    assert np.median(errors) < np.median(random) / 5


def test_a_trial_gets_the_next_point():
    """References take none; pending, failed and finished search trials take one each."""
    sequence = new().ask(6, 0)
    optimizer = new()
    optimizer.tell([make_trial(0, sequence[0], {"math": 1.0}, kind="reference")])
    assert np.array_equal(optimizer.ask(1, 1)[0], sequence[0])
    optimizer.tell([make_trial(1, sequence[0], {"math": 1.0}), make_trial(3, sequence[2])])
    pending = (running(2, sequence[1]), running(9, None, kind="reference"))
    assert np.array_equal(optimizer.ask(2, 4, pending)[1], sequence[4])


def test_too_many_dimensions():
    with pytest.raises(ConfigError, match="optimizer=random"):
        new(dim=21_202)
