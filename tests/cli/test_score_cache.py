"""Nothing is scored twice, in any run of a cache folder."""

from __future__ import annotations

import pytest
import torch
import yaml
from transformers import PreTrainedModel

from evomerge.cli import main
from evomerge.report.accounts import time_table
from evomerge.resources import resource_folder
from evomerge.store import open_run

SEARCH = ("search", "mine.yaml", "--quiet", "score_cache=true", "n_trials=2", "n_finalists=1")


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """Counts the forward passes of whole models; the cache folder is this test's own."""
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    counted: list[str] = []

    def count(module, args) -> None:
        if isinstance(module, PreTrainedModel) and hasattr(module, "lm_head"):
            counted.append(type(module).__name__)

    handle = torch.nn.modules.module.register_module_forward_pre_hook(count)
    yield counted
    handle.remove()


def scores(folder) -> dict:
    return {
        (t.number, t.split): (dict(t.scores.values), dict(t.scores.stderr))
        for t in open_run(folder).trials
    }


def test_a_second_identical_run_makes_no_forward_pass(project, forwards) -> None:
    assert main([*SEARCH, "run_dir=first"]) == 0
    n = len(forwards)
    assert n > 0
    assert main([*SEARCH, "run_dir=second"]) == 0
    assert len(forwards) == n
    assert scores("first") == scores("second")
    assert {t.split for t in open_run("second").trials} == {"search", "select", "test"}
    assert all(not t.scores.seconds for t in open_run("second").trials)
    assert "trials took none" in time_table(open_run("second")).note
    assert "trials took none" not in time_table(open_run("first")).note


def test_only_what_a_split_depends_on_counts(project, forwards) -> None:
    """Fewer test documents leave the search as it was; a dry run takes times, so it scores."""
    assert main([*SEARCH, "run_dir=first"]) == 0
    n = len(forwards)
    fewer = ["evaluator.splits.test=5", "run_dir=second"]
    assert main([*SEARCH, *fewer, "--dry-run"]) == 0
    assert len(forwards) > n
    assert main([*SEARCH, *fewer]) == 0
    scored = [t for t in open_run("second").trials if t.scores.seconds]
    assert {t.split for t in scored if t.number >= 2} == {"test"}


def test_the_switch_is_on_and_checked(project, capsys) -> None:
    settings = yaml.safe_load((resource_folder("conf") / "own.yaml").read_text())
    assert settings["score_cache"] is True
    assert main(["search", "mine.yaml", "score_cache=maybe"]) != 0
    assert "score_cache: expected true or false" in capsys.readouterr().err
