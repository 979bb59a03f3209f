"""``evomerge doctor``: the answer first, the exit code, JSON and the picture."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from evomerge.cli import main
from evomerge.cli.doctor import named_experts
from tests import models
from tests.diagnose import variants


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, list[str]]:
    capsys.readouterr()
    code = main(("doctor", *map(str, arguments)))
    return code, capsys.readouterr().out.splitlines()


def test_a_good_set(family, tmp_path: Path, capsys) -> None:
    experts = [f"math={family['expert_a']}", family["expert_b"]]
    files = tmp_path / "found.json", tmp_path / "found.svg"
    code, lines = doctor(
        capsys, *experts, "--base", family["base"], "--json", files[0], "--picture", files[1]
    )
    assert code == 0
    assert lines[0] == "Yes: these 2 experts can be merged."
    text = "\n".join(lines)
    for words in (
        "math  can be merged",
        "Task vectors",
        "opposite",
        "nothing",
        "Start with task_arithmetic, search space global",
        "evomerge search mine.yaml search_space=global",
        f"wrote {files[0]}",
    ):
        assert words in text
    data = json.loads(files[0].read_text())
    assert data["mergeable"] == ["math", "expert_b"]
    assert len(data["task_vectors"]["groups"]) == 4 * 3 + 2
    assert data["gauge"]["layers"] == [0, 1, 2, 3]
    picture = ET.parse(files[1]).getroot()
    tips = [t.text for t in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert any(t.startswith("layers.3.mlp: ") for t in tips)
    assert any(t.startswith("layer 2, value-output: factors ") for t in tips)
    assert "http" not in files[1].read_text().replace("http://www.w3.org/2000/svg", "")


def test_a_set_with_a_foreign_and_a_locked_model(family, tmp_path: Path, capsys) -> None:
    locked = variants.copy(family["expert_a"], tmp_path / "locked")
    variants.rewrite(locked, "llama", "VO", "turn")
    code, lines = doctor(
        capsys, family["expert_b"], locked, f"odd={models.family('gpt2')['base']}",
        "--base", family["base"], "--picture", tmp_path / "p.svg",
    )  # fmt: skip
    assert code == 2
    assert lines[0].startswith("Not all of them: 'locked' (re-parametrised), 'odd' (architecture)")
    text = " ".join(" ".join(lines).split())
    assert "locked cannot be merged as it is" in text
    assert "its weights were re-parametrised" in text
    assert "expert_b can be merged" in text
    assert "re-parametrised: locked." in text
    tips = (tmp_path / "p.svg").read_text()
    heading = [t.text for t in ET.fromstring(tips).iter() if t.get("font-size") == "17"]
    assert len(heading) == 2, "a long headline is broken into lines"
    assert " ".join(heading) == lines[0]
    assert tips.count(", re-parametrised</title>") == 4, "value-output of four layers"


def test_json_alone(family, capsys) -> None:
    code, lines = doctor(capsys, family["expert_a"], "--base", family["base"], "--json", "-")
    assert code == 0
    assert json.loads("\n".join(lines))["mergeable"] == ["expert_a"]


def test_nothing_fits(family, tmp_path: Path, capsys) -> None:
    """No statistics to show: the reasons, also in the picture."""
    code, lines = doctor(
        capsys, tmp_path / "gone", "--base", family["base"], "--picture", tmp_path / "p.svg"
    )
    assert code == 2
    assert lines[0] == "No: 'gone' (unreadable) cannot be merged as it is."
    assert "gone: unreadable" in (tmp_path / "p.svg").read_text()


def test_mistakes(family, tmp_path: Path, capsys) -> None:
    assert main(["doctor", str(family["expert_a"]), "--base", "x", "--picture", "p.png"]) == 2
    assert "ends in .svg" in capsys.readouterr().err
    where = str(tmp_path / "no" / "p.json")
    assert main(["doctor", str(family["expert_a"]), "--base", str(family["base"]),
                 "--json", where]) == 2  # fmt: skip
    assert "cannot be written" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["doctor", str(family["expert_a"])])


def test_names(tmp_path: Path) -> None:
    odd = tmp_path / "a=b"
    odd.mkdir()
    found = named_experts(["math=org/model@v1", "other/model", "x/base", "x/base", str(odd)])
    assert found == {
        "math": "org/model@v1",
        "model": "other/model",
        "base_2": "x/base",
        "base_3": "x/base",
        "a=b": str(odd),
    }
