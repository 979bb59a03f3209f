"""Several objectives, bounds, scalarisations and warm starts, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from evomerge.cli import main
from evomerge.store import open_run
from evomerge.trial import TrialState
from tests.cli.conftest import write_config, write_task
from tests.cli.test_cli import SEARCH, fails

DISTANCE = "objective.far={task: weights, metric: distance, direction: minimize}"


def search(*arguments: str) -> None:
    assert main((*SEARCH, "--quiet", "run_dir=run", *arguments)) == 0


def generating(folder: Path) -> None:
    """A task whose answers have a length."""
    write_task(folder, "gen")
    task = yaml.safe_load((folder / "gen.yaml").read_text())
    task |= {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "dogs",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean"}],
    }
    (folder / "gen.yaml").write_text(yaml.safe_dump(task))


def test_a_second_objective_that_is_no_task_and_a_bound(project):
    search(DISTANCE, "objective.far.bound=0.05", "optimizer=nsga2", "optimizer.pop_size=4",
           "n_trials=8")  # fmt: skip
    run = open_run(project / "run")
    assert [o.name for o in run.searched] == ["toy", "far"]
    base = next(t for t in run.complete() if t.label == "base")
    assert base.scores.values["far"] == 0
    assert main(("report", "run", "--json", "report.json")) == 0
    report = json.loads((project / "report.json").read_text())
    rows = {t["number"]: t for t in report["trials"] if t["split"] == "search"}
    assert report["front"]
    for number, row in rows.items():
        assert row["scores"]["feasible"] == (row["scores"]["raw"]["far"] <= 0.05 + 1e-9)
        assert row["scores"]["feasible"] or number not in report["front"]
    assert "≤ 0.05" in (project / "run" / "report.html").read_text()


def test_five_objectives(project):
    generating(project / "tasks")
    for name in ("two", "three"):
        write_task(project / "tasks", name, n=50)
    search(
        DISTANCE,
        "objective.length={task: gen, metric: output_tokens, direction: minimize}",
        *(
            f"objective.{n}={{task: {n}, metric: bits_per_byte, direction: minimize}}"
            for n in ("two", "three")
        ),
        "optimizer=nsga2",
        "optimizer.pop_size=4",
        "n_trials=5",
    )
    run = open_run(project / "run")
    assert len(run.searched) == 5
    assert all(len(t.scores.values) == 5 for t in run.complete())
    lengths = {t.scores.values["length"] for t in run.complete()}
    assert all(v < 0 for v in lengths), lengths


def test_a_bound_on_what_is_not_optimised(project):
    search(DISTANCE, "objective.far.search=false", "objective.far.bound=0.02")
    run = open_run(project / "run")
    assert [o.name for o in run.searched] == ["toy"]
    assert all("far" in t.scores.values for t in run.complete("search"))


def test_the_best_is_chosen_by_the_scalarisation(project):
    write_task(project / "tasks", "two", n=50)
    two = "objective.two={task: two, metric: bits_per_byte, direction: minimize}"
    search(two, "scalarisation=worst")
    run = open_run(project / "run")
    assert run.scale().scalarisation == "worst"
    assert "worst task" in (project / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("objective.toy.bound=high", "bound must be a number or a percentage"),
        ("scalarisation=wurst", "unknown scalarisation 'wurst'. Did you mean 'worst'"),
        (DISTANCE.replace("distance", "distanse"), "unknown metric 'distanse'"),
        (DISTANCE.replace("minimize", "maximize"), "write direction: minimize"),
        ("objective.toy.metric=output_tokens", "unknown metric 'output_tokens'"),
        ("warm_start=3", "warm_start: expected a list"),
        ("warm_start=[nowhere]", "nowhere"),
        ("warm_start=[nowhere.yaml]", "nowhere.yaml"),
        ("warm_start=[{run: a}]", "expected {run: FOLDER, pick: SPEC}"),
    ],
)
def test_nonsense_is_refused_at_the_door(project, capsys, override, words):
    assert words in fails(capsys, *SEARCH, override)
    assert not list(project.glob("runs/*"))


def test_a_finer_search_starts_from_a_coarser_one(project, capsys):
    search("n_trials=6")
    coarse = open_run(project / "run")
    assert main((*SEARCH, "run_dir=fine", "search_space=layerwise", "n_trials=3",
                 "warm_start=[run]")) == 0  # fmt: skip
    out = capsys.readouterr().err
    fine = open_run(project / "fine")
    warm = [t for t in fine.complete() if t.label.endswith(" of run")]
    assert len(warm) == 1
    assert f"warm start: {warm[0].label}" in out
    assert "outside the space" not in out
    source = next(t for t in coarse.complete() if f"{t.name} of run" == warm[0].label)
    assert warm[0].scores.values == pytest.approx(dict(source.scores.values), abs=1e-6)
    assert warm[0].x is not None
    assert len(np.unique(warm[0].recipe.coefficients["weight"], axis=0)) == 1
    assert main((*SEARCH, "--quiet", "run_dir=fine", "search_space=layerwise", "n_trials=3",
                 "warm_start=[run]")) == 0  # fmt: skip
    assert len(open_run(project / "fine").trials) == len(fine.trials)


def test_a_recipe_file_and_a_pick_as_warm_starts(project, family, capsys):
    search("n_trials=3")
    assert main(("export", "run", "--pick", "trial=5", "--out", "best")) == 0
    write_config(
        project, family, warm_start=["best/recipe.yaml", {"run": "run", "pick": "trial=6"}]
    )
    assert main((*SEARCH, "run_dir=again", "space.parameters.weight.high=0.001",
                 "space.parameters.weight.default=0.0005")) == 0  # fmt: skip
    assert "recipe recipe.yaml; outside the space" in capsys.readouterr().err
    again = open_run(project / "again")
    warm = [t for t in again.complete("search") if t.label.startswith(("recipe", "trial"))]
    assert [t.label for t in warm] == ["recipe recipe.yaml", "trial 6 of run"]
    assert all(t.x is None for t in warm)


def test_a_warm_start_of_other_models_is_refused(project, family, capsys):
    search("n_trials=2")
    assert main(("export", "run", "--pick", "best", "--out", "best")) == 0
    write_config(
        project,
        family,
        models={"base": str(family["base"]), "experts": {"a": str(family["expert_a"])}},
        warm_start=["best/recipe.yaml"],
    )
    assert "the recipe merges 2 experts" in fails(capsys, *SEARCH, "run_dir=other")


def test_m2n2_crosses_models_and_refuses_what_has_no_documents(project, capsys):
    search("optimizer=m2n2", "optimizer.n_design=2", "n_trials=8", "search_space=layerwise")
    assert open_run(project / "run").meta["note"] == ""
    words = "'distance' is read off the weights and has no score per document"
    assert words in fails(capsys, *SEARCH, DISTANCE, "optimizer=m2n2", "run_dir=other")
    assert main((*SEARCH, "run_dir=average", "optimizer=m2n2", "search_space=linear")) == 0
    assert "crossed by lerp" in capsys.readouterr().err
    assert main(("report", "average")) == 0
    assert "crossed by lerp" in capsys.readouterr().out


def test_a_raced_search_and_its_report(project, capsys):
    search("racing=cautious", "n_trials=12", "search_space=layerwise")
    run = open_run(project / "run")
    pruned = [t for t in run.trials if t.state is TrialState.PRUNED]
    assert pruned
    assert all(0 < t.scores.asked < 10 and t.raced_after is not None for t in pruned)
    assert run.meta["fingerprint"]["racing"]
    assert main(("report", "run", "--json", "report.json")) == 0
    assert f"{len(pruned)} stopped early" in capsys.readouterr().out
    report = json.loads((project / "report.json").read_text())
    numbers = {t.number for t in pruned}
    assert {t["number"] for t in report["trials"] if t["asked"]} == numbers
    assert not numbers & {*report["front"], *report["finalists"]}
    before = [(t.number, t.state, dict(t.scores.values)) for t in run.trials]
    search("racing=cautious", "n_trials=12", "search_space=layerwise")
    again = open_run(project / "run")
    assert [(t.number, t.state, dict(t.scores.values)) for t in again.trials] == before
    assert "racing differ" in fails(
        capsys, *SEARCH, "run_dir=run", "n_trials=12", "search_space=layerwise", "racing=bold"
    )


@pytest.mark.parametrize("who", ["racing", "m2n2"])
def test_corpus_metrics_are_refused_by_name(project, capsys, who):
    task = yaml.safe_load((project / "tasks" / "toy.yaml").read_text())
    task["metric_list"] = [{"metric": "word_perplexity"}]
    (project / "tasks" / "toy.yaml").write_text(yaml.safe_dump(task))
    wish = "racing=bold" if who == "racing" else "optimizer=m2n2"
    said = fails(capsys, *SEARCH, "objective.toy.metric=word_perplexity", wish)
    assert (
        "objective 'toy': its metric 'word_perplexity' is computed over the whole corpus" in said
    )
    assert f"which {who} needs" in said
    assert not list(project.rglob("journal.log")), "nothing was begun"


def test_racing_is_refused_where_it_cannot_be(project, capsys):
    said = fails(capsys, *SEARCH, "racing=cautious", "optimizer=m2n2")
    assert "m2n2 needs every candidate's score on every document" in said
    assert "racing=off" in said
    assert "racing.error" in fails(capsys, *SEARCH, "racing=cautious", "racing.error=2")
    assert "unknown setting of racing" in fails(capsys, *SEARCH, "+racing.errors=0.1")


def test_a_users_file_may_say_off(project, family):
    write_config(project, family, racing=False)  # what YAML makes of off
    search("n_trials=1")
    write_config(project, family, racing="bold")
    assert main((*SEARCH, "--quiet", "run_dir=raced", "n_trials=1")) == 0
    assert open_run(project / "raced").meta["config"]["racing"]["error"] == 0.3
