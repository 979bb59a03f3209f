"""The main job on the real zoo: minutes, so off by default (`make test-slow`)."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from evomerge.choose import front
from evomerge.cli import main
from evomerge.compare import paired_mean
from evomerge.pick import pick
from evomerge.run import Run
from evomerge.store import open_run
from evomerge.trial import Trial

pytestmark = pytest.mark.slow

N_TRIALS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two searches at equal budget: 12 coefficients (block x expert), and one per expert."""
    folder = tmp_path_factory.mktemp("search")
    for space in ("blockwise", "global"):
        run_dir = f"run_dir={folder / space}"
        assert main(["search", run_dir, f"search_space={space}", f"n_trials={N_TRIALS}"]) == 0
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return open_run(folder / "blockwise")


def on_test(run: Run, label_or_number: str | int) -> Trial:
    key = "label" if isinstance(label_or_number, str) else "number"
    return next(t for t in run.complete("test") if getattr(t, key) == label_or_number)


@pytest.mark.parametrize(
    "rival", ["base", "expert code", "expert prose", "expert math", "uniform average"]
)
def test_the_pick_beats_every_parent_and_the_average(run, rival) -> None:
    best = on_test(run, pick(run, "best").number)
    lead = paired_mean(best, on_test(run, rival), run.scale("test"))
    assert lead.z >= 3, lead


def test_layerwise_against_three_scalars_is_in_the_report(folder, capsys) -> None:
    page, data = folder / "page.html", folder / "data.json"
    arguments = ["report", str(folder / "blockwise"), "--against", str(folder / "global")]
    assert main([*arguments, "--html", str(page), "--json", str(data)]) == 0
    assert "global, 3 dimensions" in capsys.readouterr().out
    (entry,) = json.loads(data.read_text())["meta"]["comparison"]
    assert entry["split"] == "test"
    assert entry["low"] <= entry["difference"] <= entry["high"]
    assert "global, 3 dimensions" in page.read_text()


def test_stock_lm_eval_confirms_the_export(folder, run, tmp_path) -> None:
    out = tmp_path / "best"
    assert main(["export", str(run.path), "--pick", "best", "--out", str(out)]) == 0
    command = shlex.split(run.stock_command("test", out))  # one line: the zoo has one folder
    assert command[0] == "lm_eval"
    command[0] = str(Path(sys.executable).with_name("lm_eval"))
    results = tmp_path / "results"
    subprocess.run(
        [*command, "--output_path", str(results)],
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    (file,) = results.rglob("results_*.json")
    found = json.loads(file.read_text())["results"]
    ours = on_test(run, pick(run, "best").number)
    for o in run.objectives:
        stock = found[o.task][f"{o.metric},{o.filter}"]
        mine = o.sign * ours.scores.values[o.name]
        if o.metric in {"acc", "exact_match"}:
            assert stock == mine, o
        else:
            assert stock == pytest.approx(mine, abs=1e-4), o


LENGTH = "objective.length={task: zoo_math_exact, metric: output_tokens, direction: minimize}"
DISTANCE = "objective.distance={task: weights, metric: distance, direction: minimize}"


@pytest.mark.parametrize("optimizer", ["nsga2", "nsga3", "bayesian", "map_quadratic"])
@pytest.mark.parametrize("n_objectives", [2, 3, 5])
def test_several_objectives_and_a_bound(folder, optimizer, n_objectives) -> None:
    """Two and three log-likelihoods; five with output length and distance from the base."""
    out = folder / f"{optimizer}-{n_objectives}"
    goals = {2: ["~objective.math"], 3: [], 5: [LENGTH, DISTANCE]}[n_objectives]
    arguments = [
        *goals,
        "~objective.code_choice",
        "~objective.prose_choice",
        "objective.prose.bound=40%",
        f"optimizer={optimizer}",
        *(["optimizer.pop_size=8"] if optimizer.startswith("nsga") else []),
        f"run_dir={out}",
        "n_trials=16",
        "n_finalists=2",
        "evaluator.splits.test=100",
    ]
    assert main(["search", *arguments]) == 0
    run = open_run(out)
    assert len(run.searched) == n_objectives
    assert len([t for t in run.complete() if t.kind == "search"]) == 16
    members = front(run)
    assert members
    kept = [run.constraints().kept(t.scores.values) for t in members if t.scores]
    assert all(kept) or not any(
        run.constraints().kept(t.scores.values) for t in run.complete() if t.scores
    )
