"""Every packaged search space, searched for a few trials from the command line."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from evomerge.cli import main
from evomerge.methods import METHODS
from evomerge.resources import resource_folder
from evomerge.store import open_run
from evomerge.trial import TrialState
from tests.cli.conftest import write_config

SPACES = {
    p.stem: yaml.safe_load(p.read_text()) for p in resource_folder("search_spaces").iterdir()
}


def test_every_method_has_a_space() -> None:
    assert {spec["method"] for spec in SPACES.values()} == set(METHODS)


@pytest.mark.parametrize("name", sorted(SPACES))
def test_three_trials(name: str, project, family) -> None:
    fewest, most = METHODS[SPACES[name]["method"]].n_experts
    n = max(fewest, min(2, most or 2))
    experts = {x: str(family[f"expert_{x}"]) for x in "ab"[:n]}
    changes: dict[str, Any] = {
        "models": {"base": str(family["base"]), "experts": experts},
        "objective": {"toy": {"task": "toy", "metric": "bits_per_byte", "direction": "minimize"}},
        "evaluator": {
            "include_path": str(project / "tasks"),
            "splits": {"search": 5, "select": 5, "test": 5},
        },
        "search_space": name,
        "n_trials": 3,
        "n_finalists": 1,
        "run_dir": "run",
    }
    if name == "metric_average":
        changes["space"] = {"fixed": {"metrics": "2.5,2.0"}}
    write_config(project, family, **changes)
    assert main(["search", "mine.yaml", "optimizer=sobol"]) == 0
    trials = [t for t in open_run("run").trials if t.kind == "search"]
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 3
    assert len({t.scores.values["toy"] for t in trials if t.scores}) > 1
