"""The command line in this process: errors at the door, searching, reporting, exporting."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from evomerge.cli import main
from evomerge.methods import METHODS
from evomerge.store import open_run
from tests.cli.conftest import write_config, write_task

SEARCH = ("search", "mine.yaml")


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Runs a command that must end with one clear line and exit code 2; returns the line."""
    capsys.readouterr()
    assert main(arguments) == 2
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("evomerge: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


def only_run(folder: Path) -> Path:
    (run,) = [p for p in (folder / "runs").iterdir() if p.is_dir()]
    return run


def recopy(model: Path, out: Path) -> Path:
    shutil.copytree(model, out)
    return out


def edit(folder: Path, change) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_what_the_workers_did_is_in_the_run_folder(finished) -> None:
    lines = [json.loads(line) for line in (finished / "workers.jsonl").read_text().splitlines()]
    run = open_run(finished)
    done = {(t.number, t.split): t for t in run.trials if t.copied_from is None}
    assert [(e["trial"], e["split"]) for e in lines] == list(done)
    for e in lines:
        stored = done[e["trial"], e["split"]].scores.seconds
        assert e["seconds"] == {k: v for k, v in stored.items() if k != "wait"}
        assert stored["wait"] >= 0
        assert e["node"]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer=cmaes", "unknown optimizer option 'cmaes'. Did you mean 'cma_es'"),
        ("optimizer.sigma=1", "unknown setting of optimizer 'sigma'. Did you mean 'sigma0'"),
        ("+optimizer.sigm0=1", "Did you mean 'sigma0'"),
        ("optimizer.sigma0=-1", "sigma0"),
        ("budget.patients=3", "unknown setting of budget 'patients'. Did you mean 'patience'"),
        ("budget.hours=0", "budget.hours: expected a number > 0 or null"),
        ("n_trails=3", "unknown setting 'n_trails'. Did you mean 'n_trials'"),
        ("search_space=blockwis", "unknown search space 'blockwis'. Did you mean 'blockwise'"),
        ("space.method=task_aritmetic", "unknown merge method 'task_aritmetic'. Did you mean"),
        ("space.groups.rols=split", "Did you mean 'roles'"),
        ("space.groups=4", "groups: expected a mapping"),
        ("space=3", "space: expected settings"),
        ("space.fixed=dither", "fixed: expected a mapping, got 'dither'"),
        ("+space.fixed.norms=longest", "unknown value of fixed.norms 'longest'"),
        ("objective.toy.task=tyo", "unknown task 'tyo'"),
        ("objective.toy.metric=bits_per_bite", "bits_per_byte"),
        ("objective.toy.direction=maximize", "direction"),
        ("objective.toy.direction=up", "'maximize' or 'minimize'"),
        ("space.parameters.weight=1.0", "search space is empty"),
        ("models.experts.b=nowhere/at/all", "not a folder"),
        ("models.experts=null", "models.experts is empty"),
        ("n_trials=0", "n_trials: expected at least 1"),
        ("seed=-1", "seed: expected at least 0"),
        ("evaluator.splits.search=1000", "documents"),
        ("objective.toy.search=false", "no objective"),
    ],
)
def test_bad_settings(project, capsys, override, words) -> None:
    assert words in fails(capsys, *SEARCH, override)


def test_a_wrong_setting_names_those_of_the_chosen_driver(project, capsys) -> None:
    line = fails(capsys, *SEARCH, "optimizer=de", "optimizer.sigma0=1")
    assert "p_best" in line
    assert "n_startup" not in line


def test_bad_commands(project, capsys) -> None:
    assert "Did you mean 'search'" in fails(capsys, "serch")
    assert "Did you mean 'methods'" in fails(capsys, "list", "method")
    assert "no such file" in fails(capsys, "search", "absent.yaml")
    (project / "bad.yaml").write_text("models: {base: [")
    assert "not valid YAML" in fails(capsys, "search", "bad.yaml")
    (project / "odd.yaml").write_text("modles: {}")
    assert "Did you mean 'models'" in fails(capsys, "search", "odd.yaml")
    assert "--extend" in fails(capsys, *SEARCH, "--extend", "x")
    assert "no run folder" in fails(capsys, "report", "tasks")
    assert "no run folder" in fails(capsys, "export", "tasks", "--out", "x")


def test_expert_listed_twice(project, capsys, family) -> None:
    line = fails(capsys, *SEARCH, f"models.experts.b={family['expert_a']}")
    assert "the same model" in line
    copy = recopy(family["expert_a"], project / "copy")
    assert "same weights" in fails(capsys, *SEARCH, f"models.experts.b={copy}")


def test_experts_that_do_not_fit(project, capsys, family, tmp_path_factory) -> None:
    from tests.models import build_family

    others = tmp_path_factory.mktemp("others")
    wide = build_family(others / "wide", "llama", hidden=64)
    assert "head_dim is 8 and 16" in fails(capsys, *SEARCH, f"models.experts.b={wide['base']}")
    odd = recopy(family["expert_b"], project / "odd")

    def grow(tensors) -> None:
        tensors["model.embed_tokens.weight"] = torch.zeros(400, 32)

    edit(odd, grow)
    line = fails(capsys, *SEARCH, f"models.experts.b={odd}")
    assert "differ in the shape" in line
    assert "vocabularies have different sizes" in line
    qwen = build_family(others / "qwen", "qwen2")
    assert "architectures" in fails(capsys, *SEARCH, f"models.experts.b={qwen['base']}")
    other = recopy(family["expert_b"], project / "vocab")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    first, second = list(vocab)[100:102]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "different vocabularies" in fails(capsys, *SEARCH, f"models.experts.b={other}")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_weights(project, capsys, family, value) -> None:
    bad = recopy(family["expert_b"], project / "bad")

    def spoil(tensors) -> None:
        tensors["model.norm.weight"][3] = value

    edit(bad, spoil)
    assert "NaN or infinite" in fails(capsys, *SEARCH, f"models.experts.b={bad}")


def test_damaged_checkpoints(project, capsys, family) -> None:
    truncated = recopy(family["expert_b"], project / "truncated")
    file = truncated / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "truncated" in fails(capsys, *SEARCH, f"models.experts.b={truncated}")
    pickled = recopy(family["expert_b"], project / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    assert "safetensors only" in fails(capsys, *SEARCH, f"models.experts.b={pickled}")


def test_task_that_does_not_parse(project, capsys) -> None:
    (project / "tasks" / "toy.yaml").write_text("task: toy\noutput_type: [")
    assert "toy.yaml" in fails(capsys, *SEARCH)


def test_nothing_is_made_by_a_mistake(project, capsys) -> None:
    fails(capsys, *SEARCH, "objective.toy.task=nothing")
    assert not list((project / "runs").glob("*"))


def test_search_report_export(project, capsys) -> None:
    assert main(SEARCH) == 0
    out, err = capsys.readouterr()
    assert "On the test documents" in out
    assert "dimensions" in err
    assert "can tell apart" in err
    folder = only_run(project)
    for name in ("journal.log", "config.yaml", "report.html", "front.png", "samples-test.json"):
        assert (folder / name).stat().st_size > 0, name
    run = open_run(folder)
    assert len([t for t in run.trials if t.kind == "search"]) == 4
    assert {t.label for t in run.trials if t.kind == "reference"} == {
        "base", "expert a", "expert b", "uniform average", "task arithmetic 0.4",
    }  # fmt: skip

    assert main(["report", str(folder), "--json", "-"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {"trials", "front", "reference", "verdict"} <= set(data)

    assert main(["export", str(folder), "--pick", "best", "--out", "best"]) == 0
    shown = capsys.readouterr().out
    assert "lm_eval" in shown
    names = {p.name for p in (project / "best").iterdir()}
    assert {"model.safetensors", "config.json", "recipe.yaml", "mergekit.yaml", "README.md",
            "tokenizer.json"} <= names  # fmt: skip
    assert main(["merge", "best/recipe.yaml", "--out", "again"]) == 0
    assert main(["merge", "best/mergekit.yaml", "--out", "kit"]) == 0
    one, two, three = (
        load_file(project / d / "model.safetensors") for d in ("best", "again", "kit")
    )
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name])
        torch.testing.assert_close(tensor, three[name], rtol=0, atol=1e-6)
    assert "99" in fails(capsys, "export", str(folder), "--pick", "trial=99", "--out", "x")


def test_running_again_continues(project, capsys) -> None:
    assert main(SEARCH) == 0
    folder = only_run(project)
    before = open_run(folder)
    assert main([*SEARCH, "n_trials=6"]) == 0
    assert only_run(project) == folder
    after = open_run(folder)
    ids = {(t.number, t.split): t.recipe.id for t in after.trials}
    assert all(ids[t.number, t.split] == t.recipe.id for t in before.trials)
    assert sum(t.kind == "search" for t in after.trials) == 6
    assert main([*SEARCH, "--extend", "2"]) == 0
    assert sum(t.kind == "search" for t in open_run(folder).trials) == 8
    assert all(t.attempt == 0 for t in open_run(folder).trials)


def test_dry_run_scores_two_and_stops(project, capsys) -> None:
    assert main([*SEARCH, "--dry-run"]) == 0
    err = capsys.readouterr().err
    assert "one candidate takes" in err
    assert "can tell apart" in err
    assert len(open_run(only_run(project)).trials) == 2


def test_folder_of_another_configuration(project, capsys) -> None:
    assert main([*SEARCH, "run_dir=here"]) == 0
    config = (project / "here" / "config.yaml").read_text()
    assert "another configuration" in fails(capsys, *SEARCH, "run_dir=here", "seed=1")
    assert (project / "here" / "config.yaml").read_text() == config


def test_no_progress_ends_a_search_and_more_patience_continues_it(project, capsys) -> None:
    settings = [*SEARCH, "n_trials=40", "optimizer=random"]
    assert main([*settings, "budget.patience=2"]) == 0
    run = open_run(only_run(project))
    few = sum(t.kind == "search" for t in run.trials)
    assert few < 40
    assert run.meta["ended"] == "no progress for 2 trials (budget.patience)"
    assert f"{few} of 40 trials: no progress for 2 trials" in capsys.readouterr().out
    assert main([*settings, "budget.patience=2"]) == 0
    assert "this search is finished" in capsys.readouterr().err
    assert main([*settings, "budget.patience=3"]) == 0
    assert sum(t.kind == "search" for t in open_run(only_run(project)).trials) > few


def test_sweep_makes_two_runs_and_continues_them(project, capsys) -> None:
    assert main([*SEARCH, "-m", "seed=1,2", "n_trials=2"]) == 0
    runs = sorted(p for p in (project / "runs").iterdir() if p.is_dir())
    assert len(runs) == 2
    assert {open_run(r).meta["seed"] for r in runs} == {1, 2}
    assert main([*SEARCH, "-m", "seed=1,2", "n_trials=3"]) == 0
    assert runs == sorted(p for p in (project / "runs").iterdir() if p.is_dir())
    for folder in runs:
        assert sum(t.kind == "search" for t in open_run(folder).trials) == 3
    capsys.readouterr()
    assert main(["report", "runs", "--html", "all.html", "--json", "all.json"]) == 0
    assert "At equal budget" in capsys.readouterr().out
    both = json.loads((project / "all.json").read_text())
    assert [r["seed"] for c in both["contenders"] for r in c["runs"]] == [1, 2]
    assert "2 runs, 1 contender<" in (project / "all.html").read_text()
    assert main(["report", *map(str, runs), "--brief"]) == 0
    assert capsys.readouterr().out.count("runs/") == 2
    assert "one run" in fails(capsys, "report", "runs", "--png", "x.png")


def test_one_bad_job_does_not_end_a_sweep(project, capsys) -> None:
    capsys.readouterr()
    assert main([*SEARCH, "-m", "search_space=nowhere,global", "n_trials=2"]) == 2
    assert "unknown search space" in capsys.readouterr().err
    assert len(list((project / "runs").glob("*/report.html"))) == 1


def test_two_seeds_differ_and_one_seed_repeats(project, capsys) -> None:
    for name in ("x", "y"):
        assert main([*SEARCH, f"run_dir={name}"]) == 0
    assert main([*SEARCH, "run_dir=z", "seed=1"]) == 0

    def trials(name: str) -> list:
        return [(t.number, t.recipe.id, t.scores.values) for t in open_run(project / name).trials]

    assert trials("x") == trials("y")
    assert trials("x") != trials("z")


def test_lists(project, capsys) -> None:
    for what, name in (
        ("methods", "task_arithmetic"),
        ("optimizers", "cma_es"),
        ("spaces", "blockwise"),
    ):
        assert main(["list", what]) == 0
        assert name in capsys.readouterr().out
    assert main(["list", "methods"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert lines.keys() > METHODS.keys()
    assert lines["model_stock"].split()[1:6] == ["2+", "needed", "lambda*", "0..2", "(1)"]
    assert lines["nuslerp"].split()[1:6] == ["2", "optional", "weight", "0..1", "(0.5)"]
    assert "lerp_above=0.9995" in lines["slerp"]
    assert main(["list", "tasks", "--include-path", "tasks"]) == 0
    assert "toy" in capsys.readouterr().out


def test_help_and_config(project, capsys) -> None:
    for arguments in ([], ["--help"], ["search", "--help"]):
        assert main(arguments) == 0
        assert "evomerge search" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["report", "--help"])
    assert stop.value.code == 0
    capsys.readouterr()
    assert main([*SEARCH, "--cfg", "job"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["n_trials"] == 4
    assert set(shown["models"]["experts"]) == {"a", "b"}


def test_tab_completion(project, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COMP_LINE", "evomerge se")
    assert main(["-sc", "query=bash"]) == 0
    assert "search" in capsys.readouterr().out
    monkeypatch.setenv("COMP_LINE", "evomerge search optimizer=")
    assert main(["-sc", "query=bash"]) == 0
    assert "optimizer=cma_es" in capsys.readouterr().out
    assert main(["-sc", "install=bash"]) == 0
    assert "complete " in capsys.readouterr().out


def test_mergekit_evolve_import_runs(project, capsys, family) -> None:
    (project / "evolve.yaml").write_text(
        yaml.safe_dump(
            {
                "genome": {
                    "models": [str(family["expert_a"]), str(family["expert_b"])],
                    "base_model": str(family["base"]),
                    "merge_method": "task_arithmetic",
                    "layer_granularity": 2,
                },
                "tasks": [{"name": "toy", "weight": 1.0, "metric": "bits_per_byte,none"}],
            }
        )
    )
    assert main(["import", "evolve.yaml", "--out", "ours.yaml"]) == 0
    splits = "evaluator.splits={search: 10, select: 10, test: 10}"
    arguments = ["executor=local", "n_trials=2", splits, "evaluator.include_path=tasks"]
    off = ("apply_chat_template", "fewshot_as_multiturn")  # toys have no chat template
    arguments += [f"evaluator.{name}=false" for name in off]
    direction = "objective.{}.direction=minimize"
    name = next(iter(yaml.safe_load((project / "ours.yaml").read_text())["objective"]))
    assert main(["search", "ours.yaml", *arguments, f"++{direction.format(name)}"]) == 0


def test_no_base_searches_a_linear_merge(project, capsys, family) -> None:
    write_config(project, family, search_space="linear_global")
    assert main([*SEARCH, "models.base=null"]) == 0
    labels = {t.label for t in open_run(only_run(project)).trials if t.label}
    assert labels == {"expert a", "expert b", "uniform average"}


def test_two_objectives_nsga2_and_preferences(project, capsys, family) -> None:
    write_task(project / "tasks", "other")
    entry = {"metric": "bits_per_byte", "direction": "minimize"}
    write_config(
        project,
        family,
        objective={"toy": {"task": "toy", **entry}, "other": {"task": "other", **entry}},
        optimizer="nsga2",
        n_trials=6,
    )
    assert main(SEARCH) == 0
    folder = only_run(project)
    assert main(["export", str(folder), "--pick", "weights=toy:2,other:1", "--out", "w"]) == 0
    assert main(["export", str(folder), "--pick", "knee", "--out", "k"]) == 0
    assert "Did you mean 'other'" in fails(
        capsys, "export", str(folder), "--pick", "weights=othr:1", "--out", "n"
    )


def test_the_order_of_the_experts_is_part_of_the_configuration(project, capsys, family) -> None:
    assert main([*SEARCH, "run_dir=here", "n_trials=2"]) == 0
    swapped = {"b": str(family["expert_b"]), "a": str(family["expert_a"])}
    write_config(project, family, models={"base": str(family["base"]), "experts": swapped})
    assert "another configuration" in fails(capsys, *SEARCH, "run_dir=here", "n_trials=2")


def test_options_go_anywhere_and_odd_words_are_named(project, capsys) -> None:
    assert main(["search", "n_trials=2", "mine.yaml", "run_dir=here"]) == 0
    assert "neither FILE.yaml nor key=value" in fails(capsys, "search", "mine")
    assert "n_trials=..." in fails(capsys, *SEARCH, "--n_trials", "5")
    assert "expected an integer" in fails(capsys, *SEARCH, "n_trials=abc")
    assert "Did you mean 'cuda'" in fails(capsys, *SEARCH, "device=cudaa")


def test_the_verifying_command_survives_spaces(project, capsys) -> None:
    import shlex

    assert main([*SEARCH, "run_dir=a run", "n_trials=2"]) == 0
    assert main(["export", "a run", "--out", "merged model"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert "pretrained=merged model,dtype=float32" in shlex.split(line)


def test_a_finished_search_starts_no_worker(project, capsys, monkeypatch):
    assert main((*SEARCH, "--quiet", "run_dir=run")) == 0
    before = [t.number for t in open_run(project / "run").trials]
    from evomerge.executors.local import LocalExecutor

    with monkeypatch.context() as patched:
        patched.setattr(LocalExecutor, "warm_up", lambda self: pytest.fail("a worker was built"))
        assert main((*SEARCH, "run_dir=run")) == 0
    assert "this search is finished" in capsys.readouterr().err
    assert [t.number for t in open_run(project / "run").trials] == before
    assert main((*SEARCH, "--quiet", "run_dir=run", "--extend", "2")) == 0
    assert sum(t.kind == "search" for t in open_run(project / "run").trials) == 6
