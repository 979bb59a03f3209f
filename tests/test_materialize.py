"""Recipes become weights: in place, exactly, tied heads and all."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from evomerge.errors import CheckpointError, ConfigError, UnknownNameError
from evomerge.experts import ExpertPool
from evomerge.groups import GroupSpec, build_groups
from evomerge.materialize import (
    LiveModel,
    Merger,
    check_recipe,
    check_settings,
    rows,
)
from evomerge.recipe import ModelRef, Recipe
from evomerge.space import SearchSpace
from tests import models

CASES = [("llama", True), ("llama", False), ("qwen2", True), ("gpt2", True)]


def open_family(arch: str = "llama", tie: bool = True, dtype: str = "float32") -> ExpertPool:
    f = models.family(arch, tie, dtype)
    return ExpertPool.open(str(f["base"]), {"a": str(f["expert_a"]), "b": str(f["expert_b"])})


def random_recipe(pool: ExpertPool, method: str = "task_arithmetic", seed: int = 0) -> Recipe:
    spec = GroupSpec(blocks=2, roles="split", outside="split")
    groups = tuple(g.group for g in build_groups(spec, pool.tensors, pool.n_layers))
    weights = np.random.default_rng(seed).uniform(0.1, 0.9, (len(groups), len(pool.experts)))
    base = pool.base.ref if pool.base else None
    return Recipe(method, pool.refs, base, groups, {"weight": weights})


def naive(pool: ExpertPool, recipe: Recipe) -> dict[str, torch.Tensor]:
    """The formulas of both methods in float64."""
    merged = {}
    for name, coefficients in rows(recipe):
        base, experts = pool.sources(name)
        w = coefficients["weight"]
        if recipe.method == "linear":
            terms = [c / sum(w) * e.double() for c, e in zip(w, experts, strict=True)]
            merged[name] = sum(terms[1:], terms[0])
        else:
            assert base is not None
            merged[name] = base.double().clone()
            for c, e in zip(w, experts, strict=True):
                merged[name] += c * (e.double() - base.double())
    return merged


def saved_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The model as transformers itself writes it: names and shapes of the checkpoint."""
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load_file(Path(folder) / "model.safetensors")


@pytest.mark.parametrize(("arch", "tie"), [*CASES, *((a, True) for a in models.ARCHS[3:])])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_live_model_holds_the_merge(
    arch: str, tie: bool, method: str, device: torch.device
) -> None:
    pool = open_family(arch, tie)
    recipe = random_recipe(pool, method)
    check_recipe(recipe, pool)
    live = LiveModel(pool, device)
    Merger(pool, method, {}).merge(recipe, live.tensors)
    saved = saved_state(live.model)
    for name, expected in naive(pool, recipe).items():
        assert torch.allclose(saved[name].double(), expected, rtol=1e-6, atol=1e-7), name
    head = live.model.get_output_embeddings().weight
    embedding = live.model.get_input_embeddings().weight
    assert (head.data_ptr() == embedding.data_ptr()) == tie
    with torch.no_grad():
        tokens = torch.tensor([[1, 2, 3]], device=device)
        more = {"decoder_input_ids": tokens} if live.model.config.is_encoder_decoder else {}
        logits = live.model(tokens, **more).logits
    assert torch.isfinite(logits).all()


def test_no_candidate_leaves_a_trace(device: torch.device) -> None:
    pool = open_family()
    live = LiveModel(pool, device)
    merger = Merger(pool, "task_arithmetic", {})
    first, second = random_recipe(pool, seed=0), random_recipe(pool, seed=1)
    merger.merge(first, live.tensors)
    want = {n: t.clone() for n, t in live.tensors.items()}
    merger.merge(second, live.tensors)
    assert not all(torch.equal(t, live.tensors[n]) for n, t in want.items())
    merger.merge(first, live.tensors)
    assert all(torch.equal(t, live.tensors[n]) for n, t in want.items())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_model_of_wide_experts_is_rounded_once(dtype: str, device: torch.device) -> None:
    pool = open_family()
    recipe = random_recipe(pool)
    live = LiveModel(pool, device, dtype)
    wide = {t.name: torch.empty(t.shape, device=device) for t in pool.tensors}
    merger = Merger(pool, recipe.method, {})
    merger.merge(recipe, live.tensors)
    merger.merge(recipe, wide)
    for name, tensor in live.tensors.items():
        assert tensor.dtype == getattr(torch, dtype)
        step = torch.finfo(tensor.dtype).eps
        error = (tensor.double() - wide[name].double()).abs()
        assert (error <= 0.5001 * step * wide[name].double().abs() + 1e-7).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dithered_merges(dtype: str, device: torch.device) -> None:
    """Unbiased where the model is narrow, the plain merge where it is not, exact at the ends."""
    pool = open_family(dtype=dtype)
    plain = random_recipe(pool)
    recipe = dataclasses.replace(plain, fixed={"rounding": "dither"})
    assert recipe.id != plain.id, "two roundings are two models"
    merger = Merger(pool, recipe.method, recipe.fixed)
    live = {t.name: torch.empty(t.shape, dtype=getattr(torch, dtype)).to(device)
            for t in pool.tensors}  # fmt: skip
    merger.merge(recipe, live)
    wide = {name: torch.empty_like(t, dtype=torch.float32) for name, t in live.items()}
    Merger(pool, plain.method, plain.fixed).merge(plain, wide)
    entries = torch.cat([(live[n].double() - wide[n].double()).reshape(-1) for n in live])
    nearest = torch.cat([
        (wide[n].to(live[n].dtype).double() - wide[n].double()).reshape(-1) for n in live
    ])  # fmt: skip
    if dtype == "float32":
        assert not entries.any()
    else:
        assert float(entries.norm()) > 1.2 * float(nearest.norm()), "it was dithered"
        assert abs(float(entries.mean())) < 5 * float(entries.std()) / len(entries) ** 0.5
    only = dataclasses.replace(
        recipe, coefficients={"weight": np.tile([0.0, 1.0], (len(recipe.groups), 1))}
    )
    merger.merge(only, live)
    for name, tensor in live.items():
        assert torch.equal(tensor.cpu(), pool.experts[1].tensor(name)), "an expert stays itself"


def test_all_gpus_need_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match="device 'cuda:all': no GPU is visible here"):
        LiveModel(open_family(), "cuda:all")


def test_auto_dtype_is_the_base_model_s(device: torch.device) -> None:
    pool = open_family(dtype="bfloat16")
    assert LiveModel(pool, device).model.dtype == torch.bfloat16


def test_experts_stay_mapped_and_untouched() -> None:
    pool = open_family()
    name = pool.tensors[-1].name
    before = [e.tensor(name).clone() for e in pool.experts]
    merger = Merger(pool, "task_arithmetic", {})
    basis = merger._prepared(name, torch.device("cpu")).tensors
    assert [b.data_ptr() for b in basis[1:]] == [e.tensor(name).data_ptr() for e in pool.experts]
    live = LiveModel(pool)
    merger.merge(random_recipe(pool), live.tensors)
    assert all(torch.equal(b, e.tensor(name)) for b, e in zip(before, pool.experts, strict=True))
    merger.forget(name)
    merger.forget("no such tensor")


def test_what_is_prepared_lies_where_the_live_tensor_does() -> None:
    """Layers of one model may lie on several GPUs; ``meta`` stands for another device."""
    pool = open_family()
    merger = Merger(pool, "task_arithmetic", {})
    here, there = pool.tensors[0], pool.tensors[1]
    recipe = random_recipe(pool, "task_arithmetic")
    devices = {here.name: torch.device("cpu"), there.name: torch.device("meta")}
    merger.merge(recipe, {here.name: torch.empty(here.shape)})
    for name, device in devices.items():
        basis = merger._prepared(name, device)
        assert {t.device.type for t in basis.tensors} == {device.type}, name


def test_settings() -> None:
    with pytest.raises(UnknownNameError, match="task_arithmetic"):
        check_settings("task_aritmetic", {}, has_base=True, n_experts=2)
    with pytest.raises(UnknownNameError, match=r"rounding 'dithr'. Did you mean 'dither'"):
        check_settings("linear", {"rounding": "dithr"}, has_base=False, n_experts=2)
    with pytest.raises(ConfigError, match=r"fixed.normalise: .*\['normalize', 'rounding'\]"):
        check_settings("linear", {"normalise": True}, has_base=False, n_experts=2)
    with pytest.raises(ConfigError, match=r"needs models.base"):
        check_settings("task_arithmetic", {}, has_base=False, n_experts=2)
    with pytest.raises(ConfigError, match=r"needs models.base.*fixed.task_vectors to false"):
        check_settings("nuslerp", {"task_vectors": True}, has_base=False, n_experts=2)
    check_settings("nuslerp", {"task_vectors": True}, has_base=True, n_experts=2)


@pytest.mark.parametrize(
    ("name", "n_experts", "words"),
    [
        ("slerp", 3, "takes exactly 2 experts, got 3; list fewer under models.experts"),
        ("nuslerp", 1, "takes exactly 2 experts, got 1; list more"),
        ("nearswap", 2, "takes exactly 1 expert beside the base, got 2; list fewer"),
        ("model_stock", 1, "takes 2 or more experts beside the base, got 1; list more"),
    ],
)
def test_number_of_experts(name: str, n_experts: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_settings(name, {}, has_base=True, n_experts=n_experts)


def test_a_pool_with_another_number_of_experts_is_refused_by_space_and_merger() -> None:
    pool = open_family()
    with pytest.raises(ConfigError, match="'passthrough' takes exactly 1 expert, got 2"):
        Merger(pool, "passthrough", {})
    with pytest.raises(ConfigError, match="'nearswap' takes exactly 1 expert beside the base"):
        SearchSpace({"method": "nearswap"}, pool)
    recipe = dataclasses.replace(random_recipe(pool), method="passthrough")
    with pytest.raises(ConfigError, match="'passthrough' takes exactly 1 expert, got 2"):
        check_recipe(recipe, pool)


def test_recipe_and_pool_must_fit() -> None:
    pool = open_family()
    recipe = random_recipe(pool)
    weight = recipe.coefficients["weight"]

    def check(message: str, **changes: object) -> None:
        with pytest.raises(ConfigError, match=message):
            check_recipe(dataclasses.replace(recipe, **changes), pool)

    check(
        "merges 1 experts, the pool has 2",
        models=recipe.models[:1],
        coefficients={"weight": weight[:, :1]},
    )
    other = dataclasses.replace(recipe.models[0], content="0" * 64)
    check("other weights for 'a'.*000000000000", models=(other, recipe.models[1]))
    check(
        "must cover every tensor.*1 differ",
        groups=(
            dataclasses.replace(recipe.groups[0], tensors=recipe.groups[0].tensors[1:]),
            *recipe.groups[1:],
        ),
    )
    check(r"expected the parameters \['weight'\]", coefficients={"wait": weight})
    unknown = tuple(dataclasses.replace(m, content="") for m in recipe.models)
    check_recipe(dataclasses.replace(recipe, models=unknown), pool)


def test_recipe_without_a_base_needs_a_pool_without_one_or_ignores_it() -> None:
    pool = open_family()
    recipe = dataclasses.replace(random_recipe(pool, "linear"), base=None)
    check_recipe(recipe, pool)
    f = models.family()
    bare = ExpertPool.open(None, {"a": str(f["expert_a"]), "b": str(f["expert_b"])})
    based = dataclasses.replace(recipe, base=ModelRef("base", str(f["base"])))
    check_recipe(based, bare)


def test_transformers_cannot_load(tmp_path: Path) -> None:
    import json
    import shutil

    f = models.family()
    broken = Path(shutil.copytree(f["base"], tmp_path / "base"))
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"model_type": "no_such_model"}))
    pool = ExpertPool.open(None, {"a": str(broken)})
    with pytest.raises(CheckpointError, match="transformers cannot load"):
        LiveModel(pool)
