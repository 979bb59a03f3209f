"""``space.fixed.rounding=dither``, from the command line to the exported checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evomerge.cli import main
from evomerge.export import pool_of
from evomerge.materialize import Merger
from evomerge.recipe import Recipe
from evomerge.store import open_run
from tests import models
from tests.cli.conftest import write_config, write_task


def test_a_dithered_search_and_its_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    family = models.build_family(tmp_path / "near", dtype="bfloat16", noise=3e-4)
    write_task(tmp_path / "tasks")
    write_config(tmp_path, family)
    monkeypatch.chdir(tmp_path)
    assert main(("search", "mine.yaml", "space.fixed.rounding=dither")) == 0
    (folder,) = [p for p in (tmp_path / "runs").iterdir() if p.is_dir()]
    run = open_run(folder)
    assert {t.recipe.fixed["rounding"] for t in run.trials} == {"dither"}, "references too"
    assert all(t.state.name == "COMPLETE" for t in run.trials)

    capsys.readouterr()
    assert main(("export", str(folder), "--pick", "trial=5", "--out", "out")) == 0
    said = capsys.readouterr().out
    assert "Rounded to bfloat16 (dither): " in said
    recipe = Recipe.from_yaml((tmp_path / "out" / "recipe.yaml").read_text())
    assert recipe.fixed == {"rounding": "dither"}
    pool = pool_of(recipe)
    from safetensors.torch import load_file

    written = load_file(tmp_path / "out" / "model.safetensors")
    again = {t.name: torch.empty_like(written[t.name]) for t in pool.tensors}
    Merger(pool, recipe.method, recipe.fixed).merge(recipe, again)
    for name, tensor in again.items():
        assert torch.equal(tensor, written[name]), name
