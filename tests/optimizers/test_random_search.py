"""Random search: a point is a function of (seed, number)."""

import numpy as np
from optimizer_fakes import MATH, running

from evomerge.optimizers.base import Problem
from evomerge.optimizers.random_search import Random


def test_points_depend_on_seed_and_number_only():
    a = Random(Problem(3, 1, (MATH,), np.zeros(3)))
    b = Random(Problem(3, 1, (MATH,), np.ones(3)))
    reference = running(0, None, kind="reference")
    assert np.array_equal(a.ask(4, 0)[3], b.ask(1, 3, (reference,))[0])


def test_uniform():
    x = np.array(Random(Problem(2, 0, (MATH,), np.zeros(2))).ask(2000, 0))
    assert np.allclose(x.mean(axis=0), 0.5, atol=0.03)
    assert np.allclose(x.std(axis=0), 12**-0.5, atol=0.02)
