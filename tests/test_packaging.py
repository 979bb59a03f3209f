"""A wheel holds what a search needs, and works from an empty folder without the repository."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import write_config, write_task

ROOT = Path(__file__).parent.parent
DATA = ("conf/**/*.yaml", "search_spaces/*.yaml")
# As the console script does; -P keeps the current folder off the path.
EVOMERGE = [
    sys.executable,
    "-P",
    "-c",
    "import sys; from evomerge.cli import main; sys.exit(main())",
]


def run(arguments: list[str], cwd: Path, path: Path | None = None) -> str:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    done = subprocess.run(arguments, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed (it is one of the dev dependencies)")
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    # PYTHONPATH is kept here: it may be where hatchling lies
    done = subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(out), "."],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder for PYTHONPATH with evomerge alone in it; the rest comes from the environment."""
    target = tmp_path_factory.mktemp("site")
    run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps",
         "--no-index", "--no-compile", "--quiet", "--target", str(target), str(wheel)],
        target,
    )  # fmt: skip
    return target


def test_the_wheel_holds_code_and_data_and_nothing_else(wheel) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for pattern in DATA:
        files = list(ROOT.glob(pattern))
        assert files
        assert {f"evomerge/{f.relative_to(ROOT).as_posix()}" for f in files} <= names
    code = {f.relative_to(ROOT).as_posix() for f in (ROOT / "evomerge").rglob("*.py")}
    assert code <= names
    assert {"evomerge/report/web/page.css", "evomerge/report/web/page.js"} <= names
    assert {"evomerge/methods/native.c", "evomerge/methods/native_floats.c"} <= set(names)
    assert "hydra_plugins/evomerge_ray_launcher.py" in names
    assert "hydra_plugins/__init__.py" not in names  # a namespace, which other packages share
    assert all(n.startswith(("evomerge/", "evomerge-", "hydra_plugins/")) for n in names)
    assert not [n for n in names if n.endswith((".pyc", ".safetensors", ".log")) or "/runs/" in n]


def test_lists_and_configuration_from_the_wheel(installed, tmp_path) -> None:
    where = run([*EVOMERGE[:3], "import evomerge; print(evomerge.__file__)"], tmp_path, installed)
    assert Path(where.strip()).is_relative_to(installed)
    spaces = run([*EVOMERGE, "list", "spaces"], tmp_path, installed)
    assert all(f.stem in spaces for f in ROOT.glob("search_spaces/*.yaml"))
    shown = yaml.safe_load(run([*EVOMERGE, "search", "--cfg", "job"], tmp_path, installed))
    assert shown["executor"]["_target_"] == "evomerge.executors.ray.RayExecutor"
    assert not list(tmp_path.iterdir())


def test_a_search_from_the_wheel(installed, tmp_path, family) -> None:
    write_task(tmp_path / "tasks")
    write_config(tmp_path, family, n_trials=2)
    run([*EVOMERGE, "search", "mine.yaml", "run_dir=here"], tmp_path, installed)
    assert "evomerge" in (tmp_path / "here" / "report.html").read_text()
    assert (tmp_path / "here" / "front.png").stat().st_size


def test_the_editable_install_from_another_folder(tmp_path) -> None:
    """The package lies in the repository, its configuration beside it."""
    where = run([*EVOMERGE[:3], "import evomerge; print(evomerge.__file__)"], tmp_path)
    if not Path(where.strip()).is_relative_to(ROOT):
        pytest.skip("evomerge is not installed editable here")
    assert "blockwise" in run([*EVOMERGE, "list", "spaces"], tmp_path)
    shown = yaml.safe_load(run([*EVOMERGE, "search", "--cfg", "job"], tmp_path))
    assert shown["search_space"] == "blockwise"
    assert not list(tmp_path.iterdir())
