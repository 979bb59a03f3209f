"""evomerge in Python: the examples of the docstrings, on a real run."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

import evomerge
from evomerge import opened
from evomerge.cli import notebook
from evomerge.errors import ConfigError, UnknownNameError
from evomerge.recipe import Recipe


@pytest.mark.parametrize("module", [opened, notebook], ids=lambda m: m.__name__)
def test_examples(module, finished: Path) -> None:
    """Every example runs as it is written."""
    given = {"folder": finished, "mine": finished.parent / "mine.yaml"}
    given["run"] = opened.open_run(finished)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    examples = 0
    for test in doctest.DocTestFinder().find(module, extraglobs=given):
        examples += len(test.examples)
        runner.run(test)
    assert examples >= 3
    assert runner.failures == 0


def test_importing_evomerge_is_cheap() -> None:
    code = (
        "import sys, evomerge; assert {'search', 'open_run'} <= set(dir(evomerge));"
        "print(sorted({'torch', 'hydra', 'pandas', 'numpy', 'optuna'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        _ = evomerge.serach


def test_the_table_of_trials(finished: Path) -> None:
    run = evomerge.open_run(finished)
    rows = run.trials
    assert set(rows.split) == {"search", "select", "test"}
    assert not rows.duplicated(["number", "split"]).any()
    one = run.run.trials[0]
    assert rows.iloc[0].toy == -one.scores.values["toy"]
    assert rows.iloc[0]["toy stderr"] == one.scores.stderr["toy"]
    assert [c for c in rows.columns if c.startswith("weight")] == list(
        run.run.meta["space"]["names"]
    )
    assert isinstance(run.recipe(0), Recipe)
    with pytest.raises(UnknownNameError, match="unknown trial 99"):
        run.recipe(99)


def test_search_from_plain_data(finished: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((finished.parent / "mine.yaml").read_text())
    run = evomerge.search(
        config,
        quiet=True,
        optimizer="random",
        n_trials=2,
        seed=7,
        run_dir=tmp_path / "it's a run",
        **{"evaluator.splits": {"search": 5, "select": 0, "test": 0}, "space": {"fixed": {}}},
    )
    assert (run.run.meta["optimizer"], run.run.meta["seed"]) == ("random_search", 7)
    assert run.run.meta["documents"]["search"] == {"toy": 5}
    assert (run.trials.kind == "search").sum() == 2
    assert run.run.path == tmp_path / "it's a run"


def test_mistakes_are_ours(finished: Path) -> None:
    mine = finished.parent / "mine.yaml"
    with pytest.raises(ConfigError, match="Did you mean 'cma_es'"):
        evomerge.search(mine, optimizer="cmaes")
    with pytest.raises(ConfigError, match="no such file"):
        evomerge.search("nowhere.yaml")


@pytest.mark.parametrize(
    "value",
    [1, 0.5, 1e-7, True, None, "plain", "two words", "it's", "95%", "a,b", "[x]", "${zoo:small}",
     "/a/b", "back\\slash", "end\\'", "", "null", "Inf", "1", [1, "a b", None]],
)  # fmt: skip
def test_values_reach_hydra_as_they_are(value) -> None:
    (found,) = OverridesParser.create().parse_overrides([f"key={notebook._spelled(value)}"])
    got = found.value()
    got = str(got) if hasattr(got, "quote") and isinstance(value, str) else got
    assert got == value
