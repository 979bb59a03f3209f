"""ExpertPool: what can be merged is, and what cannot is refused by name."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.errors import CheckpointError, ConfigError
from evomerge.experts import ExpertPool
from evomerge.roles import ROLES, layer_of, role_of
from tests import models

WEIGHTS = "model.safetensors"


def open_family(arch: str = "llama", tie: bool = True) -> ExpertPool:
    f = models.family(arch, tie)
    return ExpertPool.open(str(f["base"]), {"a": str(f["expert_a"]), "b": str(f["expert_b"])})


@pytest.fixture
def copies(tmp_path: Path) -> tuple[Path, Path]:
    f = models.family()
    return (
        Path(shutil.copytree(f["base"], tmp_path / "base")),
        Path(shutil.copytree(f["expert_a"], tmp_path / "math")),
    )


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("arch", models.ARCHS)
@pytest.mark.parametrize("tie", [True, False])
def test_opens(arch: str, tie: bool) -> None:
    pool = open_family(arch, tie)
    assert pool.n_layers == 4
    assert [r.name for r in pool.refs] == ["a", "b"]
    assert all(len(r.content) == 64 for r in pool.refs)
    assert pool.anchor is pool.base
    assert {t.role for t in pool.tensors} >= {"attention", "mlp", "norm", "embedding"}
    assert {t.role for t in pool.tensors} <= set(ROLES) - {"other"}
    tied = pool.anchor.config["tie_word_embeddings"]  # a T5 always is
    assert tied in {tie, arch == "t5"}
    assert any(t.role == "head" and len(t.shape) > 1 for t in pool.tensors) == (not tied)
    assert pool.n_parameters == sum(t.size for t in pool.tensors) > 0
    base, experts = pool.sources(pool.tensors[0].name)
    assert base is not None
    assert base.shape == experts[0].shape == experts[1].shape == pool.tensors[0].shape


def test_without_a_base() -> None:
    f = models.family()
    pool = ExpertPool.open(None, {"a": str(f["expert_a"]), "b": str(f["expert_b"])})
    assert pool.base is None
    assert pool.anchor is pool.experts[0]
    assert pool.sources(pool.tensors[0].name)[0] is None


def test_travels_to_workers() -> None:
    pool = open_family()
    name = pool.tensors[0].name
    pool.sources(name)
    again = pickle.loads(pickle.dumps(pool))
    assert torch.equal(again.sources(name)[1][0], pool.sources(name)[1][0])


@pytest.mark.parametrize(
    ("name", "layer", "role"),
    [
        ("model.layers.11.self_attn.q_proj.weight", 11, "attention"),
        ("model.layers.0.self_attn.q_norm.weight", 0, "attention"),
        ("model.layers.3.mlp.down_proj.weight", 3, "mlp"),
        ("model.layers.3.block_sparse_moe.experts.7.w1.weight", 3, "mlp"),
        ("model.layers.2.post_attention_layernorm.weight", 2, "norm"),
        ("model.embed_tokens.weight", None, "embedding"),
        ("model.norm.weight", None, "norm"),
        ("lm_head.weight", None, "head"),
        ("transformer.h.5.attn.c_attn.bias", 5, "attention"),
        ("transformer.h.5.ln_1.weight", 5, "norm"),
        ("h.0.mlp.c_fc.weight", 0, "mlp"),
        ("transformer.wpe.weight", None, "embedding"),
        ("transformer.ln_f.bias", None, "norm"),
        ("gpt_neox.layers.1.attention.dense.weight", 1, "attention"),
        ("gpt_neox.layers.1.mlp.dense_h_to_4h.weight", 1, "mlp"),
        ("gpt_neox.embed_in.weight", None, "embedding"),
        ("embed_out.weight", None, "head"),
        ("gpt_neox.final_layer_norm.weight", None, "norm"),
    ],
)
def test_places(name: str, layer: int | None, role: str) -> None:
    assert (layer_of(name), role_of(name)) == (layer, role)


def refuse(base: Path, expert: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        ExpertPool.open(str(base), {"math": str(expert)})


def test_no_experts() -> None:
    with pytest.raises(ConfigError, match="at least one expert"):
        ExpertPool.open(None, {})


def test_reserved_name(copies: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="may not be called 'base'"):
        ExpertPool.open(None, {"base": str(copies[1])})


def test_listed_twice(copies: tuple[Path, Path]) -> None:
    base, expert = copies
    with pytest.raises(ConfigError, match="'a' and 'b' are the same model"):
        ExpertPool.open(str(base), {"a": str(expert), "b": f"{expert}/../math"})
    with pytest.raises(ConfigError, match="same folder"):
        ExpertPool.open(str(base), {"a": str(base)})
    shutil.copytree(expert, base.parent / "copy")
    with pytest.raises(ConfigError, match="same weights"):
        ExpertPool.open(str(base), {"a": str(expert), "b": str(base.parent / "copy")})


def test_other_architecture(copies: tuple[Path, Path]) -> None:
    refuse(copies[0], models.family("qwen2")["expert_a"], "different architectures.*'llama'")


def test_other_shape(copies: tuple[Path, Path], tmp_path: Path) -> None:
    wide = models.build_family(tmp_path / "wide", hidden=64)["expert_a"]
    refuse(copies[0], wide, r"differ in (the shape of|head_dim)|configurations")


def test_other_depth(copies: tuple[Path, Path], tmp_path: Path) -> None:
    deep = models.build_family(tmp_path / "deep", layers=5)["expert_a"]
    refuse(copies[0], deep, r"'base' lacks \d+ tensor.*layers\.4\.")


def test_other_vocabulary_size(copies: tuple[Path, Path], tmp_path: Path) -> None:
    more = models.build_family(tmp_path / "more", vocab=320)["expert_a"]
    refuse(copies[0], more, r"embed_tokens.*\[300, 32\] and \[320, 32\].*vocabularies")


def test_other_token_ids(copies: tuple[Path, Path]) -> None:
    path = copies[1] / "tokenizer.json"
    data = json.loads(path.read_text())
    vocab = data["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path.write_text(json.dumps(data))
    refuse(*copies, r"different vocabularies: token '[ab]' has id \d+ and \d+")


def test_other_function(copies: tuple[Path, Path]) -> None:
    edit_config(copies[1], num_key_value_heads=4)
    refuse(*copies, "num_key_value_heads is 2 and 4")


def test_missing_tensor(copies: tuple[Path, Path]) -> None:
    edit(copies[1], lambda t: t.pop("model.norm.weight"))
    refuse(*copies, "'math' lacks 1 tensor.*model.norm.weight")


def test_nan(copies: tuple[Path, Path]) -> None:
    edit(copies[1], lambda t: t["model.norm.weight"].fill_(float("nan")))
    refuse(*copies, "math: 1 tensor.*NaN")


def test_quantised(copies: tuple[Path, Path]) -> None:
    edit_config(copies[1], quantization_config={"quant_method": "gptq"})
    refuse(*copies, "'math' is quantised")


def test_float8(copies: tuple[Path, Path]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    edit(copies[1], lambda t: t.update({name: t[name].to(torch.float8_e4m3fn)}))
    refuse(*copies, "'math' is quantised")


def test_tied_head_is_merged_once(copies: tuple[Path, Path]) -> None:
    """Stored twice, once, or by one of them only: the head is the embedding."""
    embedding = "model.embed_tokens.weight"
    for folder in copies:
        edit(folder, lambda t: t.update({"lm_head.weight": t[embedding].clone()}))
        pool = ExpertPool.open(str(copies[0]), {"math": str(copies[1])})
        assert "lm_head.weight" not in {t.name for t in pool.tensors}


def test_index_buffers_are_not_merged(copies: tuple[Path, Path]) -> None:
    for folder in copies:
        edit(folder, lambda t: t.update({"model.layers.0.ids": torch.arange(3)}))
    pool = ExpertPool.open(str(copies[0]), {"math": str(copies[1])})
    assert "model.layers.0.ids" not in {t.name for t in pool.tensors}
    assert "model.layers.0.ids" in pool.anchor.tensors
