"""A toy project: two experts on disk, one small task, one configuration file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml


def write_task(folder: Path, name: str = "toy", n: int = 60) -> None:
    folder.mkdir(exist_ok=True)
    rows = [{"text": f"the quick brown fox {i} jumps over {i * 7 % 13} dogs"} for i in range(n)]
    (folder / f"{name}.json").write_text("\n".join(json.dumps(r) for r in rows))
    (folder / f"{name}.yaml").write_text(
        yaml.safe_dump(
            {
                "task": name,
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.json")}},
                "test_split": "test",
                "output_type": "loglikelihood_rolling",
                "doc_to_text": "",
                "doc_to_target": "{{text}}",
                "metric_list": [{"metric": "bits_per_byte"}],
            }
        )
    )


def write_config(project: Path, family: dict[str, Path], **changes) -> Path:
    config = {
        "models": {
            "base": str(family["base"]),
            "experts": {"a": str(family["expert_a"]), "b": str(family["expert_b"])},
        },
        "objective": {"toy": {"task": "toy", "metric": "bits_per_byte", "direction": "minimize"}},
        "evaluator": {
            "include_path": str(project / "tasks"),
            "splits": {"search": 10, "select": 10, "test": 10},
        },
        "executor": "local",
        "search_space": "global",
        "n_trials": 4,
        "n_finalists": 2,
        "score_cache": False,  # a test that compares two runs is to score in both
    }
    path = project / "mine.yaml"
    path.write_text(yaml.safe_dump(config | changes, sort_keys=False))
    return path


@pytest.fixture
def project(tmp_path: Path, family, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_task(tmp_path / "tasks")
    write_config(tmp_path, family)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, family) -> Path:
    """The run folder of a finished search; not to be changed."""
    from evomerge.cli import main

    project = tmp_path_factory.mktemp("finished")
    write_task(project / "tasks")
    config = write_config(project, family)
    assert main(["search", str(config), "--quiet", f"run_dir={project / 'run'}"]) == 0
    return project / "run"
