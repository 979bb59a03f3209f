"""The import laws of the house: each file imports only lower floors."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "evomerge"
FLOORS = {
    "errors": 1, "cache": 1, "pareto": 1, "resources": 1,
    "recipe": 2, "roles": 1, "geometry": 2, "estimate": 2, "methods": 2,
    "trial": 3, "scale": 3, "constraints": 3, "run": 3,
    "checkpoint": 3, "adapter": 3, "experts": 3, "groups": 3, "space": 3, "vocabulary": 3,
    "placement": 4, "prepared": 4, "materialize": 4, "realised": 4, "gram": 4, "diagnose": 4,
    "compare": 4, "choose": 4, "pick": 4, "verdict": 4, "luck": 4, "journal": 4, "store": 4,
    "score_cache": 4, "racing": 4, "budget": 4, "database": 4, "document_scores": 4,
    "records": 4, "staging": 4, "optimizers": 4, "evaluators": 4,
    "executors": 5, "report": 5, "card": 5, "mergekit": 5, "export": 5,
    "study": 6, "trackers": 6, "zoo": 6, "opened": 6,
    "cli": 7,
}  # fmt: skip
FILES = sorted(ROOT.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at the top or inside a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{a.name}" for a in node.names}
    return found


def rooms_of(path: Path) -> set[str]:
    parts = (m.split(".") for m in imports(path))
    return {p[1] for p in parts if p[0] == "evomerge" and len(p) > 1 and p[1] in FLOORS}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_only_lower_floors(path: Path) -> None:
    mine = room(path)
    if mine == "__init__":
        assert not rooms_of(path)
        return
    assert mine in FLOORS, f"{path} is on no floor: give it one in this test and DESIGN"
    for other in rooms_of(path) - {mine}:
        assert FLOORS[other] <= FLOORS[mine], f"{path} (floor {FLOORS[mine]}) imports {other}"


def test_no_cycles_between_rooms() -> None:
    edges = {}
    for path in FILES:
        if room(path) != "__init__":
            edges.setdefault(room(path), set()).update(rooms_of(path) - {room(path)})
    seen: dict[str, int] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"cycle: {' -> '.join((*trail, name))}"
        if name not in seen:
            seen[name] = 1
            for other in sorted(edges.get(name, ())):
                visit(other, (*trail, name))
            return

    for name in sorted(edges):
        visit(name, ())


@pytest.mark.parametrize("path", sorted((ROOT / "optimizers").glob("*.py")), ids=lambda p: p.stem)
def test_optimizers_know_only_trials(path: Path) -> None:
    allowed = {
        "optimizers",
        "trial",
        "scale",
        "constraints",
        "pareto",
        "geometry",
        "recipe",
        "errors",
    }
    assert rooms_of(path) <= allowed
    outside = {m.split(".")[0] for m in imports(path)}
    assert not outside & {"torch", "ray", "transformers", "lm_eval", "hydra"}


@pytest.mark.parametrize("path", sorted((ROOT / "methods").glob("*.py")), ids=lambda p: p.stem)
def test_methods_know_only_tensors(path: Path) -> None:
    allowed = {"methods", "errors"} | ({"cache"} if path.stem == "native" else set())
    assert rooms_of(path) <= allowed  # native keeps what the compiler made


def test_study_names_protocols_and_data_only() -> None:
    found = imports(ROOT / "study.py")
    outside = {m.split(".")[0] for m in found}
    assert not outside & {"ray", "lm_eval", "torch", "hydra", "transformers"}
    concrete = {m for m in found if m.startswith("evomerge.optimizers.")}
    assert all(m.startswith("evomerge.optimizers.base") for m in concrete)


def test_nothing_imports_the_command_line() -> None:
    for path in FILES:
        if room(path) != "cli":
            assert "cli" not in rooms_of(path), path


def test_no_utils() -> None:
    names = {p.stem for p in FILES}
    assert not names & {"utils", "util", "helpers", "misc", "common"}


def test_importing_the_command_line_is_cheap() -> None:
    code = (
        "import sys, evomerge.cli.commands;"
        "heavy={'torch','transformers','ray','lm_eval','optuna','plotly','matplotlib','cma','pymoo'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
