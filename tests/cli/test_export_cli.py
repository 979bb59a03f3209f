"""Export and merge on the command line: verified, and pushed only where that is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge import export as exporting
from evomerge.cli import main


def spoil(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], 3.0)
    save_file(tensors, file, metadata={"format": "pt"})


def test_verify_scores_what_was_written(finished: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    command = ("export", str(finished), "--out", str(out), "--verify")
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "verify: the trial's scores; largest difference 0 (toy)" in said
    assert "(test documents)" in said
    card = (out / "README.md").read_text()
    assert "--samples samples-test.json" in card
    assert (out / "samples-test.json").exists()
    assert str(finished.parent) not in card
    spoil(out)
    assert main(command) == 1, "an export that is there already is verified too"
    assert "verify: other scores than the trial's" in capsys.readouterr().out


def test_verify_in_another_dtype_says_what_rounding_costs(
    finished: Path, tmp_path: Path, capsys
) -> None:
    out = str(tmp_path / "out")
    code = main(("export", str(finished), "--out", out, "--verify", "--dtype", "bfloat16"))
    said = capsys.readouterr().out
    assert ("verify: the trial's scores" in said) == (code == 0)
    assert "largest difference 0 " not in said


def test_verify_of_a_recipe_compares_tensors(finished: Path, tmp_path: Path, capsys) -> None:
    assert main(("export", str(finished), "--out", str(tmp_path / "first"))) == 0
    recipe = tmp_path / "first" / "recipe.yaml"
    command = ("merge", str(recipe), "--out", str(tmp_path / "out"), "--verify")
    assert main(command) == 0
    assert "tensors equal the merge bit by bit" in capsys.readouterr().out
    spoil(tmp_path / "out")
    assert main(command) == 1
    assert "other tensors than the merge's" in capsys.readouterr().out


def test_push_is_asked_for(finished: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    sent: list[object] = []

    def push(folder: Path, repo: str, *, public: bool) -> str:
        sent.append((folder, repo, public))
        return "https://hub/me/merge"

    monkeypatch.setattr(exporting, "push", push)
    command = ["export", str(finished), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert not sent
    assert main([*command, "--push", "me/merge"]) == 0
    assert sent == [(tmp_path / "out", "me/merge", False)]
    assert "pushed to https://hub/me/merge" in capsys.readouterr().out
    spoil(tmp_path / "out")
    assert main([*command, "--push", "me/merge", "--verify"]) == 1
    assert len(sent) == 1, "what is not what was scored stays here"
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    assert "math>=95%,code" in capsys.readouterr().out
