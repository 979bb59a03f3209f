from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError, UnknownNameError
from evomerge.experts import ExpertPool
from evomerge.materialize import Merger
from evomerge.methods import METHODS, method
from evomerge.recipe import Recipe
from evomerge.space import SearchSpace, known_spaces, load_space

SPECS = {
    "blocks": {"method": "task_arithmetic", "groups": {"blocks": 2}},
    "layers": {"method": "task_arithmetic", "groups": {"blocks": "each", "outside": "split"}},
    "roles": {"method": "task_arithmetic", "groups": {"blocks": "all", "roles": "split"}},
    "role groups": {
        "method": "linear",
        "groups": {"blocks": 2, "roles": {"attn": ["attention"], "rest": ["mlp", "norm"]}},
    },
    "ranges": {"method": "task_arithmetic", "groups": {"blocks": [[0, 0], [1, 3]]}},
    "global": {
        "method": "task_arithmetic",
        "groups": {"blocks": "all"},
        "parameters": {"weight": {"per": ["expert"]}},
    },
    "one number": {
        "method": "task_arithmetic",
        "groups": {"blocks": "each"},
        "parameters": {"weight": {"per": []}},
    },
    "per group": {
        "method": "task_arithmetic",
        "groups": {"blocks": "each"},
        "parameters": {"weight": {"per": ["group"], "low": -1, "high": 2}},
    },
    "profile": {
        "method": "task_arithmetic",
        "groups": {"blocks": "each"},
        "parameters": {"weight": {"knots": 2}},
    },
    "profile by role": {
        "method": "task_arithmetic",
        "groups": {"blocks": "each", "roles": "split", "outside": "split"},
        "parameters": {"weight": {"knots": 3}},
    },
    "steps": {
        "method": "task_arithmetic",
        "groups": {"blocks": 2},
        "parameters": {"weight": {"low": 0, "high": 1, "step": 0.3, "default": 0.3}},
    },
    "custom": {
        "method": "task_arithmetic",
        "groups": {"blocks": 1, "custom": {"queries": r"q_proj"}},
    },
}


@pytest.fixture(scope="module")
def pool(family) -> ExpertPool:
    experts = {k: str(v) for k, v in family.items() if k != "base"}
    return ExpertPool.open(str(family["base"]), experts)


@pytest.mark.parametrize("name", SPECS)
def test_every_tensor_is_in_exactly_one_group(name, pool) -> None:
    space = SearchSpace(SPECS[name], pool)
    tensors = [t for g in space.groups for t in g.group.tensors]
    assert sorted(tensors) == sorted(t.name for t in pool.tensors)
    assert space.dim == len(space.names) == len(set(space.names))


@pytest.mark.parametrize("name", SPECS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_encode_inverts_decode(name, pool, data) -> None:
    space = SearchSpace(SPECS[name], pool)
    unit = st.floats(0, 1, allow_subnormal=False)
    x = np.array(data.draw(st.lists(unit, min_size=space.dim, max_size=space.dim)))
    snapped = space.snap(x)
    recipe = space.decode(x)
    np.testing.assert_allclose(space.encode(recipe), snapped, atol=1e-9)
    assert space.decode(snapped).id == recipe.id
    assert Recipe.from_yaml(recipe.to_yaml()).id == recipe.id


@pytest.mark.parametrize(
    ("name", "dim"),
    [
        ("blocks", 4),
        ("layers", 12),
        ("global", 2),
        ("one number", 1),
        ("per group", 4),
        ("profile", 4),
        ("ranges", 4),
    ],
)
def test_dimensions(name, dim, pool) -> None:
    assert SearchSpace(SPECS[name], pool).dim == dim


def test_profile_is_linear_in_depth(pool) -> None:
    space = SearchSpace(SPECS["profile"], pool)
    x = np.array([0.0, 0.0, 1.0, 1.0]) / 1.0
    weight = space.decode(x).coefficients["weight"]
    np.testing.assert_allclose(weight[:, 0], 1.5 * np.array([0, 1, 2, 3]) / 3)


def test_steps_are_snapped_and_stay_inside(pool) -> None:
    space = SearchSpace(SPECS["steps"], pool)
    x = space.snap(np.full(space.dim, 0.99))
    np.testing.assert_allclose(space.values(x), 0.9)
    np.testing.assert_allclose(space.values(space.start), 0.3)


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ({}, ConfigError, "names no merge method"),
        ({"method": "task_arithmetik"}, UnknownNameError, "Did you mean 'task_arithmetic'"),
        ({"method": "linear", "grops": {}}, UnknownNameError, "Did you mean 'groups'"),
        ({"method": "linear", "groups": {"blocks": 9}}, ConfigError, "1 to 4 blocks"),
        ({"method": "linear", "groups": {"blocks": [[0, 1]]}}, ConfigError, "exactly once"),
        ({"method": "linear", "groups": {"roles": {"a": ["atention"]}}}, UnknownNameError,
         "Did you mean 'attention'"),
        ({"method": "linear", "groups": {"custom": {"a": "("}}}, ConfigError, "regular expr"),
        ({"method": "linear", "groups": {"custom": {"a": "nothing"}}}, ConfigError, "no tensor"),
        ({"method": "linear", "parameters": {"wieght": 1}}, UnknownNameError, "'weight'"),
        ({"method": "linear", "parameters": {"weight": 1.0}}, ConfigError, "is empty"),
        ({"method": "linear", "parameters": {"weight": {"low": 2, "high": 1}}}, ConfigError,
         "low must be <= high"),
        ({"method": "linear", "parameters": {"weight": {"low": "a"}}}, ConfigError, "finite"),
        ({"method": "linear", "fixed": {"normalise": True}}, ConfigError, "no such setting"),
    ],
)  # fmt: skip
def test_bad_spaces(spec, error, words, pool) -> None:
    with pytest.raises(error, match=words):
        SearchSpace(spec, pool)


def test_encode_refuses_what_it_cannot_express(pool) -> None:
    fine = SearchSpace(SPECS["blocks"], pool)
    coarse = SearchSpace({**SPECS["blocks"], "parameters": {"weight": {"per": ["expert"]}}}, pool)
    x = np.array([0.1, 0.2, 0.3, 0.4])
    with pytest.raises(ConfigError, match="varies"):
        coarse.encode(fine.decode(x))
    with pytest.raises(ConfigError, match="outside"):
        fine.encode(fine.recipe({"weight": np.full((2, 2), 1.6)}))
    layers = SearchSpace(SPECS["layers"], pool)
    with pytest.raises(ConfigError, match="differ within the layer group"):
        fine.encode(layers.decode(np.linspace(0.1, 0.9, layers.dim)))


def test_a_coarser_recipe_is_a_point_of_a_finer_space(pool) -> None:
    coarse, fine = (SearchSpace(SPECS[name], pool) for name in ("global", "layers"))
    recipe = coarse.decode(np.array([0.2, 0.6]))
    again = fine.decode(fine.encode(recipe))
    assert again.with_groups(recipe.groups).coefficients["weight"] == pytest.approx(
        recipe.coefficients["weight"]
    )
    with pytest.raises(ConfigError, match="other tensors"):
        recipe.with_groups(fine.decode(fine.start).groups[1:])


def test_decode_checks_its_input(pool) -> None:
    space = SearchSpace(SPECS["blocks"], pool)
    with pytest.raises(ConfigError, match="shape"):
        space.decode(np.zeros(3))
    with pytest.raises(ConfigError, match=r"\[0, 1\]"):
        space.decode(np.full(4, 1.1))


@pytest.mark.parametrize("name", sorted(known_spaces()))
def test_every_packaged_space_can_be_merged(name, pool) -> None:
    """Loaded, with as many experts as its method takes; its start and a point of its inside."""
    spec = load_space(name)
    assert spec["description"]
    fitting = dataclasses.replace(
        pool, experts=pool.experts[: method(spec["method"]).n_experts[1]]
    )
    space = SearchSpace(spec, fitting)
    merger = Merger(fitting, space.method, space.fixed)
    out = {t.name: torch.empty(t.shape) for t in pool.tensors}
    for x in (space.start, np.random.default_rng(0).uniform(size=space.dim)):
        merger.merge(space.decode(x), out)
        assert all(torch.isfinite(t).all() for t in out.values())


def test_swapped_layers_are_copies(pool) -> None:
    """Bottom and top from the first expert, the middle from the second, bit by bit."""
    space = SearchSpace(load_space("layer_swap"), pool)
    swapped = np.zeros((len(space.groups), len(pool.experts)))
    swapped[:, 0] = 1
    swapped[1] = np.eye(swapped.shape[1])[1]
    recipe = space.recipe({"weight": swapped})
    np.testing.assert_array_equal(space.snap(space.encode(recipe)), space.encode(recipe))
    out = {t.name: torch.empty(t.shape) for t in pool.tensors}
    Merger(pool, space.method, space.fixed).merge(recipe, out)
    for g, group in enumerate(recipe.groups):
        for name in group.tensors:
            assert torch.equal(out[name], pool.sources(name)[1][int(g == 1)].float())


def test_every_method_has_a_space() -> None:
    assert {load_space(name)["method"] for name in known_spaces()} >= METHODS.keys()


@pytest.mark.parametrize(("high", "step"), [(1.4, 0.1), (1.5, 0.3), (2.0, 0.7), (0.9, 0.2)])
def test_the_last_step_never_leaves_the_box(high, step, pool) -> None:
    weight = {"low": 0, "high": high, "step": step, "default": 0}
    spec = {**SPECS["blocks"], "parameters": {"weight": weight}}
    space = SearchSpace(spec, pool)
    assert space.decode(space.snap(np.ones(space.dim))).coefficients["weight"].max() <= high + 1e-9


def test_spelling_out_a_default_setting_is_no_other_recipe(pool) -> None:
    spec = {"method": "linear", "groups": {"blocks": 2}}
    plain = SearchSpace(spec, pool)
    spelt = SearchSpace({**spec, "fixed": {"normalize": True}}, pool)
    x = np.full(plain.dim, 0.25)
    np.testing.assert_allclose(spelt.encode(plain.decode(x)), x)
