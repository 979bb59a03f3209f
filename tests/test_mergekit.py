"""mergekit's YAML: what we write, what we read, what we refuse by name.

That mergekit itself computes the same was tried with mergekit 0.1.5 on 64 files like these, both
written by us and by hand, on all four families: at most 2.4e-7 apart in float32.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from evomerge.errors import ConfigError, UnknownNameError
from evomerge.experts import ExpertPool
from evomerge.groups import GroupSpec, build_groups
from evomerge.materialize import Merger, check_recipe, rows
from evomerge.mergekit import METHODS, Imported, from_mergekit, import_evolve, to_mergekit
from evomerge.mergekit.config import name_models
from evomerge.methods import method
from evomerge.recipe import ModelRef, Recipe
from evomerge.space import SearchSpace
from tests import models
from tests.test_materialize import CASES, open_family

SPECS: list[dict[str, Any]] = [
    {"blocks": "all"},
    {"blocks": 2, "roles": "split", "outside": "split"},
    {"blocks": "each", "roles": {"attn": ["attention"], "rest": ["mlp", "norm"]}},
    {"blocks": [[0, 0], [1, 3]], "outside": "joined", "custom": {"q": "q_proj|c_attn"}},
    {"custom": {"odd": r"layers\.2\.mlp\.up|h\.2\.mlp\.c_fc\.weight"}},
]


def random_recipe(pool: ExpertPool, spec: Mapping[str, Any], method: str, **fixed: Any) -> Recipe:
    placed = build_groups(GroupSpec.parse(spec), pool.tensors, pool.n_layers)
    groups = tuple(g.group for g in placed)
    weights = np.random.default_rng(0).uniform(-0.5, 1, (len(groups), len(pool.experts)))
    base = pool.base.ref if pool.base else None
    return Recipe(method, pool.refs, base, groups, {"weight": weights}, fixed)


def weights_of(recipe: Recipe) -> dict[str, list[float]]:
    return {name: c["weight"] for name, c in rows(recipe)}


# --------------------------------------------------------------------------- there and back


@pytest.mark.parametrize(("arch", "tie"), CASES)
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: json.dumps(s)[:40])
@pytest.mark.parametrize(
    ("method", "fixed"),
    [("task_arithmetic", {}), ("linear", {}), ("linear", {"normalize": False})],
)
def test_round_trip(
    arch: str, tie: bool, spec: dict[str, Any], method: str, fixed: dict[str, Any]
) -> None:
    pool = open_family(arch, tie)
    recipe = random_recipe(pool, spec, method, **fixed)
    text = to_mergekit(recipe)
    back = from_mergekit(text).recipe
    assert weights_of(back) == weights_of(recipe)
    assert back.method == method
    assert [m.content for m in back.models] == [m.content for m in recipe.models]
    assert back.base is not None
    assert back.fixed.get("normalize", True) == fixed.get("normalize", True)
    assert yaml.safe_load(to_mergekit(back)) == yaml.safe_load(text)


def recipe_of(name: str, spec: Mapping[str, Any], **fixed: Any) -> Recipe:
    """A recipe that mergekit can express, with as many experts as the method takes."""
    chosen, row = method(name), METHODS[name]
    f = models.family()
    experts = {n: str(f[n]) for n in ("expert_a", "expert_b")[: chosen.n_experts[1]]}
    pool = ExpertPool.open(str(f["base"]), experts)
    placed = build_groups(GroupSpec.parse(spec), pool.tensors, pool.n_layers)
    random, k = np.random.default_rng(1), len(experts)
    coefficients = {
        p: np.full((len(placed), 1 if about.shared else k), row.only[p])
        if p in row.only
        else random.uniform(about.low, about.high, (len(placed), 1 if about.shared else k))
        for p, about in chosen.parameters.items()
    }
    for p in row.equal:
        coefficients[p][:] = 1.0
    if {"density", "epsilon"} <= coefficients.keys():  # DELLA: density +- epsilon within (0, 1)
        coefficients["density"] = 0.4 + 0.2 * coefficients["density"]
    base = pool.base.ref if pool.base else None
    groups = tuple(g.group for g in placed)
    return Recipe(name, pool.refs, base, groups, coefficients, fixed)


def merged(recipe: Recipe) -> dict[str, torch.Tensor]:
    base = recipe.base.path if recipe.base else None
    pool = ExpertPool.open(base, {m.name: m.path for m in recipe.models})
    check_recipe(recipe, pool)
    out = {t.name: torch.empty(t.shape) for t in pool.tensors}
    Merger(pool, recipe.method, recipe.fixed).merge(recipe, out)
    return out


@pytest.mark.parametrize("spec", [SPECS[0], SPECS[1]], ids=["all", "split"])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_there_and_back(name: str, spec: dict[str, Any]) -> None:
    """The recipe that is read back merges to the same weights."""
    row = METHODS[name]
    fixed = {**row.minor, **{p: bool(row.parameters[p]) for p in row.words}}  # as mergekit has it
    recipe = recipe_of(name, spec, **fixed)
    text = to_mergekit(recipe)
    back = from_mergekit(text).recipe
    assert back.method == name
    assert [m.content for m in back.models] == [m.content for m in recipe.models]
    wanted, got = merged(recipe), merged(back)
    assert all(torch.equal(wanted[n], got[n]) for n in wanted)
    again = to_mergekit(back)
    assert yaml.safe_load(again) == yaml.safe_load(text)


@pytest.mark.parametrize("name", ["nuslerp", "multislerp"])
def test_a_base_means_task_vectors(name: str) -> None:
    on_models = recipe_of(name, {})
    assert "base_model" not in yaml.safe_load(to_mergekit(on_models))
    on_deltas = recipe_of(name, {}, task_vectors=True)
    data = yaml.safe_load(to_mergekit(on_deltas))
    assert on_deltas.base is not None
    assert data["base_model"] == data["slices"][0]["sources"][0]["model"] == on_deltas.base.path
    for recipe, wanted in ((on_models, False), (on_deltas, True)):
        assert from_mergekit(to_mergekit(recipe)).recipe.fixed["task_vectors"] is wanted


def test_the_base_of_slerp_is_its_first_expert() -> None:
    got = read(SLERP + "base_model: @B\nparameters: {t: [0, 1]}").recipe
    assert [m.name for m in got.models] == ["expert_b", "expert_a"]
    assert got.base is None
    (third,) = {c["t"][0] for n, c in rows(got) if ".2." in n}
    assert third == pytest.approx(2 / 3)


def test_slices_of_slerp_without_its_base() -> None:
    f = models.family()
    pair = [{"model": str(f[n]), "layer_range": [0, 4]} for n in ("expert_a", "expert_b")]
    data = {"merge_method": "slerp", "base_model": str(f["base"]), "slices": [{"sources": pair}]}
    with pytest.raises(ConfigError, match="none of the two models that slerp merges"):
        from_mergekit(yaml.safe_dump(data | {"parameters": {"t": 0.5}}))


def test_the_base_of_karcher_is_one_of_its_models() -> None:
    got = read("models: [{model: @A}]\nmerge_method: karcher\nbase_model: BASE").recipe
    assert [m.name for m in got.models] == ["base_2", "expert_a"]
    assert (got.coefficients["weight"] == 1).all()


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("model_stock", {"lambda": 0.5}, "no 'lambda': it computes with 1 throughout"),
        ("arcee_fusion", {"spread": 2.0}, "no 'spread'"),
        ("ram", {"weight": [1.0, 0.5]}, "no 'weight'"),
        ("karcher", {"weight": [1.0, 0.5]}, "no 'weight': all experts count alike"),
    ],
)
def test_what_mergekit_s_method_lacks(name: str, changed: dict[str, Any], message: str) -> None:
    recipe = recipe_of(name, {})
    coefficients = {p: np.array(m) for p, m in recipe.coefficients.items()}
    for p, value in changed.items():
        coefficients[p][:] = value
    with pytest.raises(ConfigError, match=message):
        to_mergekit(dataclasses.replace(recipe, coefficients=coefficients))


def test_settings_that_mergekit_has_no_name_for() -> None:
    with pytest.raises(ConfigError, match=r"'lerp_above': it is 0\.9995 there, 1\.0 in"):
        to_mergekit(recipe_of("slerp", {}, lerp_above=1.0))
    written = to_mergekit(recipe_of("sce", {}))
    assert "floor 1e-06, the recipe 0.0" in written
    assert "equal torch, the recipe all" in written
    assert read(RAM).recipe.fixed == {"epsilon": 1e-5}
    assert read(RAM + "parameters: {epsilon: 1e-3}").recipe.fixed == {"epsilon": 1e-3}
    stock = "models: [{model: @A}, {model: @B}]\nmerge_method: model_stock\nbase_model: BASE\n"
    assert read(stock).recipe.fixed == {"floor": 1e-6, "filter_wise": False}
    ties = stock.replace("model_stock", "ties") + "parameters: {weight: 0.5, density: 0.5}"
    assert read(ties).recipe.fixed["equal"] == "torch"


@pytest.mark.skipif("della" not in METHODS, reason="the method is not there")
def test_densities_that_mergekit_s_della_refuses() -> None:
    recipe = recipe_of("della", {}, rescale=True)
    low = {**recipe.coefficients, "density": np.full((1, 2), 0.1), "epsilon": np.full((1, 1), 0.2)}
    with pytest.raises(
        ConfigError, match=r"between epsilon and 1 - epsilon.*0\.1 with epsilon 0\.2"
    ):
        to_mergekit(dataclasses.replace(recipe, coefficients=low))


def test_a_slice_without_one_of_the_models() -> None:
    f = models.family()
    a, b = ({"model": str(f[n]), "layer_range": [0, 2]} for n in ("expert_a", "expert_b"))
    later = {**a, "layer_range": [2, 4]}
    slices = [{"sources": [a, b]}, {"sources": [later]}]
    with pytest.raises(ConfigError, match=r"without '.*expert_b', which 'karcher' cannot do"):
        from_mergekit(yaml.safe_dump({"merge_method": "karcher", "slices": slices}))


def test_round_trip_without_a_base() -> None:
    f = models.family()
    pool = ExpertPool.open(None, {"a": str(f["expert_a"]), "b": str(f["expert_b"])})
    recipe = random_recipe(pool, {}, "linear")
    back = from_mergekit(to_mergekit(recipe)).recipe
    assert back.base is None
    assert weights_of(back) == weights_of(recipe)


def test_what_is_written() -> None:
    recipe = random_recipe(open_family(), {"blocks": 2, "roles": "split"}, "linear")
    data = yaml.safe_load(to_mergekit(recipe, "bfloat16"))
    assert data["dtype"] == "float32", "mergekit must not compute in bfloat16"
    assert data["out_dtype"] == "bfloat16"
    assert [s["sources"][0]["layer_range"] for s in data["slices"]] == [[0, 2], [2, 4]]
    base, expert, _ = data["slices"][0]["sources"]
    assert base["parameters"] == {"weight": 0.0}
    filters = [c.get("filter") for c in expert["parameters"]["weight"]]
    assert len(filters) == 4
    assert filters[-1] is None
    assert all(len(f) < 20 for f in filters[:-1]), "whole words suffice here"
    assert "out_dtype" not in yaml.safe_load(to_mergekit(recipe, "float32"))


@pytest.mark.parametrize("path", ["/m/a+b", "/m/a b"])
def test_odd_paths_survive(path: str) -> None:
    recipe = random_recipe(open_family(), {}, "task_arithmetic")
    odd = dataclasses.replace(recipe, base=ModelRef("base", path))
    data = yaml.safe_load(to_mergekit(odd))
    assert data["base_model"] == ({"model": {"path": path}} if "+" in path else path)


def test_what_mergekit_cannot_express() -> None:
    recipe = random_recipe(open_family(), {}, "linear")
    with pytest.raises(ConfigError, match="'magic'"):
        to_mergekit(dataclasses.replace(recipe, method="magic"))
    names = tuple(f"{side}.layers.{i}.mlp.w" for side in ("encoder", "decoder") for i in (0, 1))
    group = dataclasses.replace(recipe.groups[0], tensors=names)
    two = dataclasses.replace(recipe, groups=(group,), coefficients={"weight": np.ones((1, 2))})
    with pytest.raises(ConfigError, match="one stack of layers"):
        to_mergekit(two)


def test_names_within_names() -> None:
    """``mlp.w`` is part of ``deep.mlp.w``; the longer one must be asked for first."""
    recipe = random_recipe(open_family(), {}, "task_arithmetic")
    suffixes = ["mlp.w", "deep.mlp.w", "mlp.wide", "xmlp.w"]
    groups = tuple(
        dataclasses.replace(recipe.groups[0], name=s, tensors=(f"layers.0.{s}", f"layers.1.{s}"))
        for s in suffixes
    )
    weights = np.array([[0.1, 1], [0.2, 1], [0.3, 1], [0.3, 1]])
    odd = dataclasses.replace(recipe, groups=groups, coefficients={"weight": weights})
    assert "deep" in to_mergekit(odd)  # and it read its own text back to the same weights


# --------------------------------------------------------------------------- reading


def place(text: str, arch: str = "llama", tie: bool = False) -> str:
    for name, folder in models.family(arch, tie).items():
        text = text.replace(name.upper().replace("EXPERT_", "@"), str(folder))
    return text


def read(text: str, arch: str = "llama", tie: bool = False) -> Imported:
    return from_mergekit(place(text, arch, tie))


def layer(weights: Mapping[str, list[float]], i: int, part: str) -> list[float]:
    (found,) = {tuple(w) for n, w in weights.items() if f".{i}." in n and part in n}
    return list(found)


def test_gradients_filters_and_folding() -> None:
    got = read(
        """
        models:
          - model: @A
            parameters: {weight: [0.1, 0.5, 0.9]}
          - model: @B
            parameters:
              weight:
                - {filter: self_attn, value: [0.2, 1.0]}
                - {filter: mlp, value: 0.3}
                - value: 0.7
        merge_method: task_arithmetic
        base_model: BASE
        parameters: {normalize: true, lambda: 0.8, int8_mask: true}
        dtype: bfloat16
        """
    )
    w = weights_of(got.recipe)
    assert [m.name for m in got.recipe.models] == ["expert_a", "expert_b"]

    def folded(a: float, b: float) -> Any:
        return pytest.approx([0.8 * a / (a + b), 0.8 * b / (a + b)], rel=1e-12)

    third = 0.1 + 0.8 / 3  # depth 1/3 of the gradient
    assert layer(w, 0, "self_attn") == folded(0.1, 0.2)
    assert layer(w, 1, "self_attn") == folded(third, 0.2 + 0.8 / 3)
    assert layer(w, 1, "mlp.") == folded(third, 0.3)
    assert layer(w, 3, "layernorm") == folded(0.9, 0.7)
    for outside in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert w[outside] == folded(0.1, 0.7), "outside of the layers: the start of a gradient"
    assert got.dtype == "bfloat16"
    assert got.recipe.fixed == {}
    assert any("int8_mask" in n for n in got.notes)
    assert any("compute in bfloat16" in n for n in got.notes)


def test_slices_levels_and_mixed_normalisation() -> None:
    got = read(
        """
        slices:
          - sources:
              - {model: @A, layer_range: [0, 1], parameters: {weight: [0.2, 0.6]}}
              - {model: @B, layer_range: [0, 1]}
          - sources:
              - model: @A
                layer_range: [1, 4]
                parameters:
                  weight: [{filter: lm_head, value: 0.9}, {filter: self_attn, value: 0.8}]
              - {model: @B, layer_range: [1, 4], parameters: {weight: 0.25}}
            parameters: {weight: [{filter: down_proj, value: 0.125}]}
        merge_method: linear
        parameters: {weight: 0.5, normalize: [{filter: mlp, value: false}, {value: true}]}
        """
    )
    w = weights_of(got.recipe)
    assert got.recipe.fixed == {"normalize": False}
    assert layer(w, 0, "mlp.") == pytest.approx([0.6, 0.5])  # one layer: the end of its gradient
    assert layer(w, 0, "self_attn") == pytest.approx([0.6 / 1.1, 0.5 / 1.1])
    assert layer(w, 2, "down_proj") == pytest.approx([0.125, 0.25])  # the slice's level
    assert layer(w, 2, "up_proj") == pytest.approx([0.5, 0.25])  # the global level
    assert w["model.embed_tokens.weight"] == pytest.approx([0.2 / 0.7, 0.5 / 0.7])
    assert w["model.norm.weight"] == pytest.approx([0.5 / 0.75, 0.25 / 0.75])
    assert w["lm_head.weight"] == pytest.approx([0.9 / 1.15, 0.25 / 1.15])
    assert got.dtype == "auto"


def test_the_base_in_an_average() -> None:
    head = "merge_method: linear\nbase_model: BASE\n"
    named = read(
        head + "models: [{model: @A, parameters: {weight: 1}},"
        " {model: BASE, parameters: {weight: 3}}]"
    ).recipe
    assert named.base is None
    assert [m.name for m in named.models] == ["base_2", "expert_a"]
    assert {tuple(w) for w in weights_of(named).values()} == {(3.0, 1.0)}
    added = read(head + "models: [{model: @A, parameters: {weight: 1}}]\nparameters: {weight: 2}")
    assert [m.name for m in added.recipe.models] == ["base_2", "expert_a"]
    aside = read(head + "models: [{model: @A, parameters: {weight: 1}}]")
    assert aside.recipe.base is not None
    assert [m.name for m in aside.recipe.models] == ["expert_a"]
    assert any("no part of the average" in n for n in aside.notes)


def test_the_base_among_the_models_of_task_arithmetic() -> None:
    got = read(
        "merge_method: task_arithmetic\nbase_model: BASE\n"
        "models: [{model: BASE}, {model: @A, parameters: {weight: 0.5}}]"
    ).recipe
    assert [m.name for m in got.models] == ["expert_a"]


def test_hub_models_are_named_by_their_last_part() -> None:
    named = name_models(["org/x@main", "other/x", "other/base"])
    assert named == {"x": "org/x@main", "x_2": "other/x", "base_2": "other/base"}


GOOD = "models: [{model: @A, parameters: {weight: 1}}]\n"
LINEAR = GOOD + "merge_method: linear\n"
SLERP = "models: [{model: @A}, {model: @B}]\nmerge_method: slerp\n"
RAM = GOOD + "merge_method: ram\nbase_model: BASE\n"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("[", ConfigError, "not valid YAML"),
        ("- 1", ConfigError, "holds no mapping"),
        ("", ConfigError, "holds no mapping"),
        (LINEAR + "---\n" + LINEAR, ConfigError, "multi-stage merge .2 YAML documents"),
        ("merges: {a: 1}", ConfigError, "multi-stage merge .merges"),
        ("modules: {a: 1}", ConfigError, "several modules"),
        ("genome: {a: 1}", ConfigError, "evomerge import"),
        (GOOD + "merge_method: tiez\n", UnknownNameError, "'tiez'"),
        ("models: [{model: @A}, {model: @B}]\nmerge_method: passthrough\n", ConfigError,
         "exactly 1 expert, got 2"),
        ("models: [{model: @A}]\nbase_model: BASE\nmerge_method: passthrough\n", ConfigError,
         "exactly 1 expert, got 2"),  # mergekit adds the base to the models
        (SLERP + "parameters: {t: 0.5}", ConfigError, "slerp needs base_model"),
        (SLERP + "base_model: @A", ConfigError, "no t at"),
        (SLERP + "base_model: BASE\nparameters: {t: 0.5}", ConfigError, "2 experts, got 3"),
        ("models: [{model: @A}]\nmerge_method: model_stock\nbase_model: BASE\n", ConfigError,
         "2 or more experts beside the base, got 1"),
        (RAM + "parameters: {epsilon: [0, 1]}", ConfigError, "epsilon differs between tensors"),
        (LINEAR + "tokeniser_source: base\n", UnknownNameError, "Did you mean 'tokenizer_source'"),
        (LINEAR + "tokenizer_source: union\n", ConfigError, "tokenizer_source 'union'"),
        (LINEAR + "tokenizer: {source: @B}\n", ConfigError, "tokenizer_source"),
        (LINEAR + "tokenizer_source: {model: {path: x}}\n", ConfigError, "tokenizer_source"),
        (LINEAR + "tokenizer: {tokens: {x: 1}}\n", ConfigError, "tokenizer.tokens changes"),
        (LINEAR + "dtype: int8\n", UnknownNameError, "dtype 'int8'"),
        (LINEAR + "slices: [1]\n", ConfigError, "either 'models' or 'slices'"),
        ("merge_method: linear\n", ConfigError, "either 'models' or 'slices'"),
        (GOOD + "merge_method: task_arithmetic\n", ConfigError, "needs base_model"),
        ("merge_method: linear\nmodels: [{model: @A}]", ConfigError, "no weight for .*expert_a"),
        ("merge_method: linear\nmodels: [{model: @A+lora}]", ConfigError, "applies a LoRA"),
        ("merge_method: linear\nmodels: [{model: @A}, {model: @A}]", ConfigError, "twice"),
        ("merge_method: linear\nmodels: [@A]", ConfigError, "must be a mapping"),
        ("merge_method: linear\nmodels: {a: 1}", ConfigError, "must be a list"),
        ("merge_method: linear\nmodels: [{model: @A, parameters: {weight: x}}]", ConfigError,
         "'weight' must be a number"),
        (LINEAR + "parameters: {normalize: [1, x]}", ConfigError, "'normalize' must be"),
        ("merge_method: task_arithmetic\nbase_model: BASE\nmodels: [{model: BASE}]", ConfigError,
         "no model beside base_model"),
    ],
)  # fmt: skip
def test_refused(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read(text)


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([[0, 2], [0, 2]], "stack, repeat, skip or reorder"),
        ([[2, 4], [0, 2]], "stack, repeat, skip or reorder"),
        ([[0, 1], [2, 4]], "stack, repeat, skip or reorder"),
        ([[0, 2]], "take layers 0 to 1, the models have 4"),
        ([[0, 4], [4, 6]], "take layers 0 to 5, the models have 4"),
        ([[0]], "layer_range must be"),
    ],
)
def test_refused_layer_ranges(ranges: list[list[int]], message: str) -> None:
    path = str(models.family()["expert_a"])
    slices = [
        {"sources": [{"model": path, "layer_range": r, "parameters": {"weight": 1}}]}
        for r in ranges
    ]
    with pytest.raises(ConfigError, match=message):
        from_mergekit(yaml.safe_dump({"merge_method": "linear", "slices": slices}))


def test_refused_slices() -> None:
    f = models.family()
    pair = [
        {"model": str(f["expert_a"]), "layer_range": [0, 4], "parameters": {"weight": 1}},
        {"model": str(f["expert_b"]), "layer_range": [0, 3], "parameters": {"weight": 1}},
    ]
    with pytest.raises(ConfigError, match="layer by layer"):
        from_mergekit(yaml.safe_dump({"merge_method": "linear", "slices": [{"sources": pair}]}))
    odd = {"sources": pair[:1], "residual_weight": 0.5}
    with pytest.raises(ConfigError, match="residual_weight is not supported"):
        from_mergekit(yaml.safe_dump({"merge_method": "linear", "slices": [odd]}))


# --------------------------------------------------------------------------- mergekit-evolve

EVOLVE = """
genome:
  models: [org/math, org/code]
  merge_method: task_arithmetic
  base_model: org/base
  layer_granularity: 2
  filters: [self_attn, mlp]
  allow_negative_weights: true
tasks:
  - my_math
  - {name: my_code, weight: 2, metric: "exact_match,strict-match"}
  - {name: my_wiki, weight: -0.5, metric: "word_perplexity,none"}
limit: 100
num_fewshot: 3
random_seed: 7
"""


def evolve(text: str = EVOLVE, n_layers: int | None = 4, **genome: Any) -> dict[str, Any]:
    data = yaml.safe_load(text)
    data["genome"] |= genome
    return import_evolve(yaml.safe_dump(data), lambda _: n_layers)


def test_evolve() -> None:
    got = evolve()
    assert got["models"] == {
        "name": "base", "base": "org/base", "experts": {"math": "org/math", "code": "org/code"},
    }  # fmt: skip
    assert [
        (o["name"], o["task"], o["metric"], o["filter"], o["direction"], o["weight"])
        for o in got["objectives"]
    ] == [
        ("my_math", "my_math", "acc", "none", "maximize", 1.0),
        ("my_code", "my_code", "exact_match", "strict-match", "maximize", 2.0),
        ("my_wiki", "my_wiki", "word_perplexity", "none", "minimize", 0.5),
    ]
    assert got["evaluator"] == {
        "num_fewshot": 3, "apply_chat_template": True, "fewshot_as_multiturn": True,
        "splits": {"search": 100},
    }  # fmt: skip
    assert got["seed"] == 7
    assert got["search_space"] == {
        "method": "task_arithmetic",
        "groups": {
            "blocks": 2,
            "roles": {"self_attn": ["attention"], "mlp": ["mlp"]},
            "outside": "nearest",
        },
        "parameters": {
            "weight": {"low": -1.5, "high": 1.5, "default": 0.5, "per": ["group", "expert"]}
        },
    }
    assert any("no bounds" in n for n in got["notes"])
    assert yaml.safe_load(yaml.safe_dump(got)) == got, "plain data"


@pytest.mark.parametrize(
    "genome",
    [
        {},
        {"layer_granularity": 1},
        {"layer_granularity": 0},
        {"layer_granularity": 2, "smooth": True},
        {"layer_granularity": 1, "smooth": True, "filters": None},
        {"filters": ["down_proj", "layernorm"]},
        {"filters": ["down_proj"], "layer_granularity": 0},
        {"merge_method": "linear"},
        {"merge_method": "linear", "normalize": False},
    ],
    ids=json.dumps,
)
def test_an_imported_space_can_be_searched(genome: dict[str, Any]) -> None:
    """Its axes are the ones that mergekit-evolve would search, and it starts where it starts."""
    spec = evolve(**genome)["search_space"]
    space = SearchSpace(spec, open_family())
    settings = yaml.safe_load(EVOLVE)["genome"] | genome
    g = settings["layer_granularity"]
    blocks = 4 // g if g else 1
    assert space.dim == blocks * (len(settings["filters"] or []) + 1) * 2
    start = space.decode(space.start)
    assert np.allclose(start.coefficients["weight"], 0.5)


def test_evolve_slerp() -> None:
    """mergekit-evolve softens the weights of two models to a t; here t itself is searched."""
    got = evolve(merge_method="slerp", filters=None, base_model=None)
    assert got["models"]["base"] is None
    assert got["search_space"] == {
        "method": "slerp",
        "groups": {"blocks": 2, "roles": "joined", "outside": "nearest"},
        "parameters": {"t": {"low": 0.0, "high": 1.0, "default": 0.5, "per": ["group"]}},
    }
    space = SearchSpace(got["search_space"], open_family())
    assert space.dim == 2


@pytest.mark.skipif("ties" not in METHODS, reason="the method is not there")
def test_evolve_density() -> None:
    got = evolve(merge_method="ties")["search_space"]
    assert got["fixed"] == {"normalize": True}
    assert got["parameters"]["density"]["default"] == 1.0
    space = SearchSpace(got, open_family())
    assert (space.decode(space.start).coefficients["density"] == 1).all()


def test_evolve_details() -> None:
    linear = evolve(merge_method="linear", base_model=None)
    assert linear["search_space"]["fixed"] == {"normalize": True}
    assert linear["models"]["base"] is None
    normalised = evolve(normalize=True)
    assert normalised["search_space"]["method"] == "linear"
    assert any("weighted average" in n for n in normalised["notes"])
    averaged = evolve(merge_method="linear", models=["org/math", "org/base"])
    assert averaged["models"] == {
        "name": "base", "base": None, "experts": {"base_2": "org/base", "math": "org/math"},
    }  # fmt: skip
    positive = evolve(allow_negative_weights=False, models=["org/a", "org/base"])
    assert positive["models"]["experts"] == {"a": "org/a"}
    weight = positive["search_space"]["parameters"]["weight"]
    assert (weight["low"], weight["default"]) == (0.0, 1.0)
    twice = EVOLVE.replace("name: my_code", "name: my_math")
    assert [o["name"] for o in evolve(twice)["objectives"]] == [
        "my_math", "my_math_exact_match", "my_wiki",
    ]  # fmt: skip
    plain = evolve(EVOLVE + "apply_chat_template: false\nshuffle: true\nrandom_init: true\n")
    assert plain["evaluator"]["fewshot_as_multiturn"] is False
    assert sum("shuffle" in n or "random_init" in n for n in plain["notes"]) == 2


def test_layers_are_counted_in_local_folders() -> None:
    f = models.family("gpt2")
    data = yaml.safe_load(EVOLVE)
    data["genome"] |= {"base_model": str(f["base"]), "models": [str(f["expert_a"])]}
    assert import_evolve(yaml.safe_dump(data))["search_space"]["groups"]["blocks"] == 2


@pytest.mark.parametrize(
    ("genome", "error", "message"),
    [
        ({"merge_method": "dare_tied"}, UnknownNameError, "'dare_tied'.*cannot search"),
        ({"merge_method": "karcher"}, UnknownNameError, "'karcher'.*cannot search"),
        (
            {"merge_method": "slerp", "base_model": None, "models": ["o/a", "o/b", "o/c"]},
            ConfigError,
            "slerp of 3 models",
        ),
        ({"merge_method": "slerp", "base_model": None}, ConfigError, "neither filters nor smooth"),
        (
            {"merge_method": "slerp", "filters": None, "base_model": None, "models": ["o/a"]},
            ConfigError,
            "slerp of 1 models",
        ),
        ({"layer_granularity": 3}, ConfigError, "does not divide the 4 layers"),
        ({"layer_granularity": "two"}, ConfigError, "whole number"),
        ({"tokenizer_source": "union"}, ConfigError, "tokenizer_source"),
        ({"base_model": None}, ConfigError, "base_model is missing"),
        ({"models": []}, ConfigError, "must be a list of models"),
        ({"models": ["a/a", "a/a"]}, ConfigError, "twice"),
        ({"models": ["org/base"]}, ConfigError, "no model beside"),
        ({"layer_granulation": 2}, UnknownNameError, "Did you mean 'layer_granularity'"),
        ({"smooth": True, "filters": ["down_proj"]}, ConfigError, "no counterpart"),
        ({"filters": "mlp"}, ConfigError, "list of texts"),
    ],
)
def test_evolve_refused(genome: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        evolve(**genome)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not valid YAML"),
        ("models: []", "'genome' mapping"),
        (EVOLVE.partition("tasks:")[0], "list of lm-eval tasks"),
        (EVOLVE + "optimizer: x", "optimizer"),
        (EVOLVE.replace("weight: 2", "wait: 2"), "wait"),
        (EVOLVE.replace("- my_math", "- 3"), "a task is a name"),
    ],
)
def test_evolve_files_refused(text: str, message: str) -> None:
    with pytest.raises((ConfigError, UnknownNameError), match=message):
        import_evolve(text, lambda _: 4)


def test_layers_unknown() -> None:
    with pytest.raises(ConfigError, match="needs the number of layers"):
        evolve(n_layers=None)
    assert evolve(n_layers=None, layer_granularity=0)["search_space"]["groups"]["blocks"] == "all"
