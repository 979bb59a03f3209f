"""Gram matrices against the real tensors, and the spaces that have a geometry."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evomerge.experts import ExpertPool
from evomerge.gram import geometry, grams
from evomerge.materialize import Merger
from evomerge.space import SearchSpace

TASK = {"method": "task_arithmetic", "groups": {"blocks": 2}}
PLAIN = {"method": "linear", "groups": {"blocks": 2}, "fixed": {"normalize": False}}


@pytest.fixture(scope="module")
def pool(family) -> ExpertPool:
    experts = {k: str(v) for k, v in family.items() if k != "base"}
    return ExpertPool.open(str(family["base"]), experts)


def flat(pool, recipe, minus_base):
    """All merged weights in one vector."""
    merger = Merger(pool, recipe.method, recipe.fixed)
    out = {t.name: torch.zeros(t.shape) for t in pool.tensors}
    merger.merge(recipe, out)
    parts = [out[t.name].double() for t in pool.tensors]
    if minus_base:
        parts = [p - pool.base.tensor(t.name) for p, t in zip(parts, pool.tensors, strict=True)]
    return torch.cat([p.reshape(-1) for p in parts]).numpy()


@pytest.mark.parametrize("spec", [TASK, PLAIN], ids=["task_arithmetic", "linear"])
def test_norms_and_angles_of_candidates_are_those_of_their_weights(pool, spec):
    space = SearchSpace(spec, pool)
    found = geometry(pool, space)
    assert found is not None
    rng = np.random.default_rng(0)
    points = rng.random((2, space.dim))
    a, b = (found.coefficients(x) for x in points)
    u, v = (flat(pool, space.decode(x), spec is TASK) for x in points)
    assert found.inner(a, b) == pytest.approx(u @ v, rel=1e-5)
    cosine = u @ v / np.sqrt((u @ u) * (v @ v))
    assert np.cos(found.angle(a, b)) == pytest.approx(cosine, rel=1e-6)
    for x, c in zip(points, (a, b), strict=True):
        assert np.array_equal(space.decode(x).coefficients["weight"], c)
        assert found.point(c) == pytest.approx(x)
    assert found.sizes.sum() == pool.n_parameters


def test_shared_axes_have_a_geometry_too(pool):
    one = {**TASK, "parameters": {"weight": {"per": ["expert"]}}}
    found = geometry(pool, SearchSpace(one, pool))
    assert found.coefficients(np.array([0.2, 0.6]))[0] == pytest.approx([0.3, 0.9])
    assert found.point(np.array([[0.3, 0.9], [0.3, 0.9]])) == pytest.approx([0.2, 0.6])
    assert found.point(np.array([[0.3, 0.9], [0.4, 0.9]])) is None, "the space shares the rows"
    assert found.point(np.full((2, 2), 1.7)) is None, "outside"


def test_normalised_averages_have_none(pool):
    assert geometry(pool, SearchSpace({"method": "linear", "groups": {"blocks": 2}}, pool)) is None


def test_task_vectors_made_equally_long_have_none(pool):
    assert geometry(pool, SearchSpace({**TASK, "fixed": {"norms": "equal"}}, pool)) is None


def test_grams_of_equal_groups_add_up(pool):
    whole = SearchSpace({**TASK, "groups": {"blocks": "all"}}, pool)
    parts = SearchSpace({**TASK, "groups": {"blocks": "each", "roles": "split"}}, pool)
    total, pieces = (
        grams(pool, [g.group for g in s.groups], task_vectors=True) for s in (whole, parts)
    )
    assert pieces.sum(axis=0) == pytest.approx(total.sum(axis=0))
    assert np.linalg.eigvalsh(pieces).min() > -1e-9
