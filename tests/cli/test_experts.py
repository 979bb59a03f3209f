"""What may stand where an expert is named: a checkpoint, a LoRA adapter, a finished recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.cli import main
from evomerge.recipe import Recipe
from evomerge.store import open_run
from tests.diagnose import variants


def write_adapter(folder: Path, base: Path, rank: int = 4) -> Path:
    """A LoRA adapter of the toy base, as peft writes it."""
    folder.mkdir()
    random = torch.Generator().manual_seed(0)
    tensors = {}
    for name, weight in load_file(base / "model.safetensors").items():
        if name.endswith(("q_proj.weight", "down_proj.weight")):
            module = "base_model.model." + name.removesuffix(".weight")
            rows, columns = weight.shape
            tensors[f"{module}.lora_A.weight"] = torch.randn(rank, columns, generator=random) / 4
            tensors[f"{module}.lora_B.weight"] = torch.randn(rows, rank, generator=random) / 4
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def search(*overrides: str) -> Path:
    before = set(Path("runs").iterdir()) if Path("runs").exists() else set()
    assert main(["search", "mine.yaml", *overrides]) == 0
    (run,) = set(Path("runs").iterdir()) - before
    return run


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_an_adapter_beside_a_checkpoint_searched_and_exported(project, family, method) -> None:
    adapter = write_adapter(project / "lora", family["base"])
    run = search(f"models.experts.b={adapter}", f"search_space={method}" if method == "ties" else
                 "search_space=global")  # fmt: skip
    assert main(["export", str(run), "--pick", "trial=6", "--out", "out"]) == 0
    assert not Path("out/mergekit.yaml").exists()
    assert "'b' is a LoRA adapter" in Path("out/README.md").read_text()
    recipe = Recipe.from_yaml(Path("out/recipe.yaml").read_text())
    assert recipe.models[1].path == str(adapter.resolve())
    base, mine = (load_file(p / "model.safetensors") for p in (family["base"], Path("out")))
    assert not torch.equal(base["model.layers.0.mlp.down_proj.weight"],
                           mine["model.layers.0.mlp.down_proj.weight"])  # fmt: skip
    assert main(["merge", "out/recipe.yaml", "--out", "again"]) == 0
    again = load_file("again/model.safetensors")
    assert all(torch.equal(t, again[n]) for n, t in mine.items())


def test_a_recipe_is_an_expert_of_the_next_search(project, family) -> None:
    first = search()
    trial = open_run(first).complete("search")[-1]
    Path("half.yaml").write_text(trial.recipe.to_yaml())
    second = search("models.experts.b=half.yaml")
    pool = open_run(second).complete("search")[-1].recipe.models
    merged = Path(pool[1].path)
    assert Recipe.from_yaml((merged / "recipe.yaml").read_text()).coefficients.keys() == {"weight"}
    assert main(["merge", "half.yaml", "--out", "whole"]) == 0
    mine, theirs = load_file("whole/model.safetensors"), load_file(merged / "model.safetensors")
    assert all(torch.equal(t, theirs[n]) for n, t in mine.items())


def test_what_is_no_recipe_is_refused(project, capsys) -> None:
    Path("odd.yaml").write_text("a: 1\n")
    for name, words in (("odd.yaml", "merge_method"), ("absent.yaml", "cannot be read")):
        assert main(["search", "mine.yaml", f"models.experts.b={name}"]) == 2
        assert words in capsys.readouterr().err


def test_an_expert_with_more_tokens(project, family, capsys) -> None:
    """Refused with the way out; with it, searched, continued, exported and merged again."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    chat = variants.add_tokens(family["expert_b"], project / "chat", n=3, rows=5)
    given = f"models.experts.b={chat}"
    assert main(["search", "mine.yaml", given]) == 2
    assert "models.tokenizer=base, or an expert's name" in capsys.readouterr().err
    run = search(given, "models.tokenizer=b")
    assert main(["search", "mine.yaml", given, "models.tokenizer=b", "n_trials=5"]) == 0
    assert len(open_run(run).complete("search")) == 5 + 5
    assert main(["export", str(run), "--pick", "trial=6", "--out", "out", "--verify"]) == 0
    model = AutoModelForCausalLM.from_pretrained("out")
    assert model.config.vocab_size == 305
    assert "<|new_2|>" in AutoTokenizer.from_pretrained("out").get_vocab()
    assert main(["merge", "out/recipe.yaml", "--out", "again"]) == 0
    first, again = (load_file(f"{f}/model.safetensors") for f in ("out", "again"))
    assert all(torch.equal(t, again[n]) for n, t in first.items())
    short = search(given, "models.tokenizer=base")
    assert short != run
    recipe = open_run(short).complete("search")[-1].recipe
    assert recipe.tokenizer == "base"
