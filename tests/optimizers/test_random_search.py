"""Random search: a point is a function of (seed, number)."""

import numpy as np
from optimizer_fakes import MATH, running

from evomerge.optimizers.random_search import Random


def test_points_depend_on_seed_and_number_only():
    a = Random(dim=3, seed=1, objectives=(MATH,), start=np.zeros(3))
    b = Random(dim=3, seed=1, objectives=(MATH,), start=np.ones(3))
    reference = running(0, None, kind="reference")
    assert np.array_equal(a.ask(4, 0)[3], b.ask(1, 3, (reference,))[0])


def test_uniform():
    x = np.array(Random(dim=2, seed=0, objectives=(MATH,), start=np.zeros(2)).ask(2000, 0))
    assert np.allclose(x.mean(axis=0), 0.5, atol=0.03)
    assert np.allclose(x.std(axis=0), 12**-0.5, atol=0.02)
