"""Pareto geometry against its definitions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from evomerge import pareto
from evomerge.errors import ConfigError

matrices = arrays(
    np.float64,
    array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12).filter(lambda s: s[1] <= 4),
    elements=st.integers(-3, 3).map(float),  # small integers: many ties and duplicates
)


def naive_mask(F):
    return np.array([not any(pareto.dominates(g, f) for g in F) for f in F])


@given(matrices)
@settings(max_examples=80, deadline=None)
def test_non_dominated_is_its_definition(F):
    assert pareto.non_dominated(F).tolist() == naive_mask(F).tolist()


@given(matrices)
@settings(max_examples=60, deadline=None)
def test_ranks_peel_fronts(F):
    left, rank = np.arange(len(F)), 0
    got = pareto.ranks(F)
    for front in pareto.fronts(F):
        mask = naive_mask(F[left])
        assert left[mask].tolist() == front.tolist()
        assert (got[front] == rank).all()
        left, rank = left[~mask], rank + 1
    assert not len(left)


def test_dominates():
    assert pareto.dominates([1, 2], [1, 1])
    assert not pareto.dominates([1, 2], [1, 2])
    assert not pareto.dominates([1, 2], [2, 1])


def test_crowding_by_hand():
    F = np.array([[0.0, 4.0], [1.0, 3.0], [3.0, 1.0], [4.0, 0.0]])
    assert pareto.crowding_distance(F).tolist() == [np.inf, 0.75, 0.75, np.inf]
    constant = np.column_stack([F, np.ones(4)])
    assert pareto.crowding_distance(constant).tolist() == [np.inf, 0.75, 0.75, np.inf]
    assert np.isinf(pareto.crowding_distance(F[:2])).all()
    assert pareto.crowding_distance(np.ones((3, 2))).tolist() == [0, 0, 0]


def test_hypervolume_by_hand():
    F = np.array([[2.0, 1.0], [1.0, 2.0], [0.5, 0.5], [-1.0, 9.0]])
    assert pareto.hypervolume(F, [0, 0]) == pytest.approx(3.0)
    assert pareto.hypervolume(F, [2, 2]) == 0.0
    assert pareto.hypervolume(np.zeros((0, 2)), [0, 0]) == 0.0
    assert pareto.hypervolume([[3.0], [5.0]], [1.0]) == 4.0
    assert pareto.hypervolume([[1.0, 2.0, 3.0]], [0, 0, 0]) == pytest.approx(6.0)


def test_knee():
    bent = np.array([[0.0, 10.0], [0.9, 9.0], [1.0, 0.0], [0.5, 5.0]])  # the last is dominated
    assert pareto.knee(bent) == 1
    assert pareto.knee(bent * [1, 1000] + [5, -7]) == 1, "units must not matter"
    assert pareto.knee([[3.0, 1.0]]) == 0
    assert pareto.knee([[0.0, 0.0], [3.0, 1.0]]) == 1
    assert pareto.knee([[3.0, 1.0], [1.0, 3.0]]) == 0
    assert pareto.knee([[2.0, 2.0], [2.0, 2.0]]) == 0
    assert pareto.knee([[1.0], [4.0], [2.0]]) == 1
    line = np.array([[0.0, 1.0], [0.2, 0.8], [0.5, 0.5], [1.0, 0.0]])
    assert pareto.knee(line) == 2, "of equal trade-offs, the balanced one"
    with_constant = np.column_stack([bent, np.full(4, 7.0)])
    assert pareto.knee(with_constant) == 1


@given(matrices)
@settings(max_examples=60, deadline=None)
def test_knee_is_on_the_front(F):
    assert pareto.non_dominated(F)[pareto.knee(F)]


@pytest.mark.parametrize(
    "call",
    [
        lambda: pareto.non_dominated([1.0, 2.0]),
        lambda: pareto.ranks(np.zeros((2, 0))),
        lambda: pareto.ranks([["a", "b"]]),
        lambda: pareto.fronts([[1.0, np.nan]]),
        lambda: pareto.crowding_distance([[np.inf, 1.0]]),
        lambda: pareto.hypervolume([[1.0, 2.0]], [0.0]),
        lambda: pareto.hypervolume([[1.0, 2.0]], [0.0, np.nan]),
        lambda: pareto.dominates([1.0], [1.0, 2.0]),
        lambda: pareto.knee(np.zeros((0, 2))),
    ],
)
def test_wrong_input_is_refused(call):
    with pytest.raises(ConfigError, match="expected"):
        call()


def test_empty_is_fine():
    empty = np.zeros((0, 2))
    assert pareto.non_dominated(empty).shape == (0,)
    assert pareto.fronts(empty) == []
    assert pareto.crowding_distance(empty).shape == (0,)
