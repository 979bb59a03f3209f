"""Models with different tokens, merged in the vocabulary of one of them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from evomerge.checkpoint import Checkpoint
from evomerge.errors import CheckpointError, ConfigError, UnknownNameError
from evomerge.experts import ExpertPool
from evomerge.export import export
from evomerge.materialize import Merger
from evomerge.mergekit import from_mergekit, to_mergekit
from evomerge.recipe import LayerGroup, Recipe
from tests import models
from tests.cli.test_experts import write_adapter
from tests.diagnose import variants

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def family(request) -> dict[str, Path]:
    return models.family("llama", tie=request.param)


@pytest.fixture
def chat(family, tmp_path) -> Path:
    """expert_b with three tokens more, in five rows more."""
    return variants.add_tokens(family["expert_b"], tmp_path / "chat", n=3, rows=5)


def swap_tokens(folder: Path, out: Path, a: str = "a", b: str = "b") -> Path:
    """The same model under a tokenizer that has exchanged two ids."""
    copy = variants.copy(folder, out)
    data = json.loads((copy / "tokenizer.json").read_text())
    vocab = data["model"]["vocab"]
    i, j = vocab[a], vocab[b]
    vocab[a], vocab[b] = j, i
    (copy / "tokenizer.json").write_text(json.dumps(data))

    def rows(tensors: dict[str, torch.Tensor]) -> None:
        for name in {EMBEDDING, HEAD} & tensors.keys():
            tensors[name][[i, j]] = tensors[name][[j, i]]

    variants.edit(copy, rows)
    return copy


def opened(family, chat: Path, tokenizer: str | None) -> ExpertPool:
    experts = {"a": str(family["expert_a"]), "chat": str(chat)}
    return ExpertPool.open(str(family["base"]), experts, tokenizer=tokenizer)


def recipe_of(pool: ExpertPool, weights: list[float]) -> Recipe:
    group = LayerGroup("all", tuple(t.name for t in pool.tensors))
    coefficients = {"weight": np.array([weights])}
    base = pool.base.ref if pool.base else None
    return Recipe("task_arithmetic", pool.refs, base, (group,), coefficients, {}, pool.spelling)


def merged(pool: ExpertPool, name: str, weights: list[float]) -> torch.Tensor:
    shape = next(t.shape for t in pool.tensors if t.name == name)
    out = torch.empty(shape)
    Merger(pool, "task_arithmetic", {}).merge_tensor(name, {"weight": weights}, out)
    return out


def test_other_vocabularies_are_refused_with_the_way_out(family, chat) -> None:
    with pytest.raises(CheckpointError, match=r"models\.tokenizer=base, or an expert's name"):
        opened(family, chat, None)


def test_in_the_vocabulary_of_the_base_added_rows_are_left_out(family, chat) -> None:
    pool = opened(family, chat, "base")
    plain = opened(family, family["expert_b"], None)
    for tensor in plain.tensors:
        expected = merged(plain, tensor.name, [0.3, 0.6])
        assert torch.equal(merged(pool, tensor.name, [0.3, 0.6]), expected)
    assert pool.anchor is pool.base


def test_a_token_that_one_expert_has_keeps_its_row(family, chat) -> None:
    pool = opened(family, chat, "chat")
    theirs = Checkpoint.open("chat", str(chat))
    mine = merged(pool, EMBEDDING, [0.3, 0.6])
    assert mine.shape == theirs.tensors[EMBEDDING].shape
    n = Checkpoint.open("base", str(family["base"])).tensors[EMBEDDING].shape[0]
    plain = opened(family, family["expert_b"], None)
    assert torch.equal(mine[:n], merged(plain, EMBEDDING, [0.3, 0.6]))
    torch.testing.assert_close(mine[n:], theirs.tensor(EMBEDDING)[n:], rtol=0, atol=1e-7)
    assert pool.anchor.folder == theirs.folder


@pytest.mark.parametrize("tokenizer", ["base", "chat"])
def test_rows_are_matched_by_token(family, tokenizer, tmp_path) -> None:
    """A model whose ids were exchanged along with its rows is the same model."""
    odd = swap_tokens(family["expert_b"], tmp_path / "odd")
    mine = merged(opened(family, odd, tokenizer), EMBEDDING, [0.3, 0.6])
    expected = merged(opened(family, family["expert_b"], None), EMBEDDING, [0.3, 0.6])
    if tokenizer == "chat":
        tokens = Checkpoint.open("odd", str(odd)).tokens()
        i, j = tokens["a"], tokens["b"]
        expected[[i, j]] = expected[[j, i]]
    assert torch.equal(mine, expected)


def test_without_a_base_a_row_is_the_mean_of_those_that_have_it(family, chat, tmp_path) -> None:
    """Three experts without a base: two have the token, the third gets their mean."""
    other = variants.add_tokens(family["expert_a"], tmp_path / "other", n=3, rows=5)
    variants.edit(other, lambda t: t[EMBEDDING][-5:].add_(1.0))
    experts = {"plain": str(family["base"]), "chat": str(chat), "other": str(other)}
    pool = ExpertPool.open(None, experts, tokenizer="chat")
    rows = [c.tensor(EMBEDDING) for c in pool.experts]
    new = [models.VOCAB, models.VOCAB + 1, models.VOCAB + 2]
    torch.testing.assert_close(rows[0][new], (rows[1][new] + rows[2][new]) / 2)
    assert not torch.equal(rows[1][new], rows[2][new])


def test_an_adapter_follows_its_base(family, chat, tmp_path) -> None:
    adapter = write_adapter(tmp_path / "lora", family["base"])
    experts = {"lora": str(adapter), "chat": str(chat)}
    pool = ExpertPool.open(str(family["base"]), experts, tokenizer="chat")
    alone = ExpertPool.open(str(family["base"]), {"lora": str(adapter)})
    name = "model.layers.0.mlp.down_proj.weight"
    assert torch.equal(merged(pool, name, [0.5, 0.0]), merged(alone, name, [0.5]))
    assert pool.experts[0].low_rank(name) is not None
    assert merged(pool, EMBEDDING, [0.5, 0.0]).shape == pool.anchor.tensors[EMBEDDING].shape
    with pytest.raises(ConfigError, match="'lora' is an adapter"):
        ExpertPool.open(str(family["base"]), experts, tokenizer="lora")


def test_the_copies_are_written_once_and_travel_to_workers(
    family, chat, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    pool = opened(family, chat, "chat")
    first = merged(pool, EMBEDDING, [1.0, 0.0])
    files = sorted((tmp_path / "cache" / "respelled").iterdir())
    assert len(files) == 2  # of the base and of a; chat stands as it is
    again = pickle.loads(pickle.dumps(pool))
    assert torch.equal(merged(again, EMBEDDING, [1.0, 0.0]), first)
    assert sorted((tmp_path / "cache" / "respelled").iterdir()) == files
    assert [r.content for r in pool.refs] == [
        Checkpoint.open(n, str(f)).audited().content
        for n, f in (("a", family["expert_a"]), ("chat", chat))
    ]


def test_exported_with_its_tokenizer_and_from_its_recipe(family, chat, tmp_path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    recipe = recipe_of(opened(family, chat, "chat"), [0.3, 0.6])
    out = export(Recipe.from_yaml(recipe.to_yaml()), tmp_path / "out")
    model, tokenizer = (c.from_pretrained(out) for c in (AutoModelForCausalLM, AutoTokenizer))
    assert model.get_input_embeddings().weight.shape[0] == models.VOCAB + 5
    assert tokenizer.convert_tokens_to_ids("<|new_2|>") < models.VOCAB + 5
    assert "<|new_2|>" in tokenizer.get_vocab()
    assert recipe.id != recipe_of(opened(family, chat, "base"), [0.3, 0.6]).id
    assert model(torch.tensor([[models.VOCAB, 1]])).logits.isfinite().all()


def test_mergekit_names_the_tokenizer_by_its_model(family, chat) -> None:
    recipe = recipe_of(opened(family, chat, "chat"), [0.3, 0.6])
    text = to_mergekit(recipe)
    assert f"tokenizer_source: {chat}" in text
    back = from_mergekit(text).recipe
    assert back.tokenizer == back.models[1].name == "chat"
    for value, words in (("union", "'union'"), ("nobody/nothing", "one of the merged models")):
        with pytest.raises(ConfigError, match=words):
            from_mergekit(text.replace(f"tokenizer_source: {chat}", f"tokenizer_source: {value}"))


def test_what_cannot_be_matched(family, chat, tmp_path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'chat'"):
        opened(family, chat, "chad")
    bare = variants.copy(family["expert_b"], tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        opened(family, bare, "base")
    foreign = variants.copy(family["expert_b"], tmp_path / "foreign")
    data = json.loads((foreign / "tokenizer.json").read_text())
    data["model"]["vocab"] = {f"x{t}": i for t, i in data["model"]["vocab"].items()}
    data["model"]["merges"] = []
    (foreign / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="of different families"):
        opened(family, foreign, "base")
    with pytest.raises(ConfigError, match="expected one of"):
        Recipe.from_dict(recipe_of(opened(family, chat, "base"), [1, 1]).to_dict()
                         | {"tokenizer": "nobody"})  # fmt: skip
