"""The tutorials in docs/: evomerge takes every command, and every configuration composes."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from evomerge.cli import main
from evomerge.methods.base import Sources
from evomerge.space import known_spaces

FOLDER = Path(__file__).parents[2] / "docs" / "tutorials"
PAGES = sorted(FOLDER.glob("*.md"))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The words of every evomerge command."""
    lines = "\n".join(blocks(page, "bash")).splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    return [words for words in split if words and words[0] == "evomerge"]


CASES = [
    pytest.param(p, c, id=f"{p.stem}: {' '.join(c)[:50]}") for p in PAGES for c in commands(p)
]


def test_there_is_one_for_each() -> None:
    found = {p.stem for p in PAGES}
    assert found == {"first_search", "own_models", "pareto", "cluster", "adding_a_method"}
    assert len(CASES) > 20


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the tutorials write, and no zoo."""
    for page in PAGES:
        for text in blocks(page, "yaml"):
            if text.startswith("# part of "):
                continue
            name = re.match(r"# (\S+\.yaml)\n", text).group(1)
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    monkeypatch.setattr("evomerge.cli.compose._zoo", lambda _: str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("page", "words"), CASES)
def test_commands_parse(page: Path, words: list[str], folder: Path, monkeypatch, capsys) -> None:
    command, *rest = words[1:]
    if command == "search":
        kept = [w for w in rest if not re.fullmatch(r"--dry-run|--extend|\d+", w)]
        assert main(["search", *kept, "--cfg", "job"]) == 0
        config = yaml.safe_load(capsys.readouterr().out)
        space = config["search_space"]
        assert space in known_spaces() or (folder / "search_spaces" / f"{space}.yaml").exists()
        return
    parse = argparse.ArgumentParser.parse_args

    class Parsed(Exception):
        pass

    def stop(self: argparse.ArgumentParser, *arguments: object) -> None:
        parse(self, *arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(Parsed):
        main([command, *rest])


def test_the_method_of_the_tutorial_computes_its_formula() -> None:
    (source,) = blocks(FOLDER / "adding_a_method.md", "python")
    module: dict = {}
    exec(compile(source, "mean_vector.py", "exec"), module)
    method = module["MeanVector"]()
    base, a, b = (torch.tensor(v) for v in ([0.0, 1.0], [2.0, 1.0], [4.0, 3.0]))
    basis = method.prepare(Sources("w", base, [a, b]), None, {})
    out = torch.empty(2)
    method.combine(out, basis, {"scale": [0.5]}, {})
    assert out.tolist() == [1.5, 1.5]
