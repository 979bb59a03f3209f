"""Reports of every kind of run: what they say, and that no name can break them."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import html
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from evomerge import report
from evomerge.errors import ExportError
from evomerge.report import cells, data, facts, markup, page, progress, tables
from evomerge.trial import Objective
from tests import synthetic as s

HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(2)'>",
    "\U0001f980 %{x} $\\alpha$ &lt;b&gt;",
    "</script><b>bold</b>\x1b[31m\u202ered",
)
SAFETY = Objective("safety", "truthfulqa", "acc", search=False)


def _failed():
    return s.run([s.failed(i) for i in range(3)], optimizer="cma_es")


def _references():
    run = s.study(n=0)
    return dataclasses.replace(run, meta={})


def _live():
    run = s.study(n=6, test=False, pending=[s.running(40), s.running(41)])
    return dataclasses.replace(
        run, trials=(*run.trials, s.failed(39)), meta={**run.meta, "n_trials": 50}
    )


def _hostile():
    objectives = [
        Objective(f"{name} {i}", name, name, direction="minimize" if i else "maximize")
        for i, name in enumerate(HOSTILE[:3])
    ]
    run = s.study(n=8, objectives=objectives, names=HOSTILE[1:4], groups=3)
    trials = [
        dataclasses.replace(
            t, label=f"expert {HOSTILE[3]}" if t.label.startswith('expert "') else t.label
        )
        for t in run.trials
    ]
    trials.append(s.failed(90, error="\n".join(HOSTILE)))
    space = {"name": HOSTILE[0], "dim": 9}
    meta = {**run.meta, "space": space, "optimizer": HOSTILE[1], "created": HOSTILE[2]}
    meta["comparison"] = [{"title": HOSTILE[0], "run_path": HOSTILE[3], "best": float("nan")}]
    return dataclasses.replace(run, trials=tuple(trials), meta=meta)


RUNS = {
    "empty": lambda: s.run([]),
    "failed": _failed,
    "references": _references,
    "live": _live,
    "one objective": lambda: s.study(n=6, objectives=s.OBJECTIVES[:1]),
    "two objectives": lambda: s.study(n=12, objectives=(*s.OBJECTIVES, SAFETY)),
    "three objectives": lambda: s.study(n=6, objectives=[Objective(n, n, "acc") for n in "abc"]),
    "five objectives": lambda: s.study(n=6, objectives=[Objective(n, n, "acc") for n in "abcde"]),
    "hostile": _hostile,
}


@pytest.fixture(params=sorted(RUNS))
def any_run(request):
    return RUNS[request.param]()


@pytest.fixture(scope="module")
def study():
    return RUNS["two objectives"]()


class Elements(HTMLParser):
    """Collects (tag, attributes) and the text outside scripts and styles."""

    def __init__(self):
        super().__init__()
        self.tags, self.text, self._raw = [], [], False

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._raw = tag in {"script", "style"}

    def handle_endtag(self, tag):
        self._raw = False

    def handle_data(self, data):
        if not self._raw:
            self.text.append(data)


def parsed(text):
    elements = Elements()
    elements.feed(text)
    return elements


def test_every_form_of_every_run(any_run):
    shown = report.text(any_run)
    assert shown.strip()
    assert "\x1b" not in shown
    json.dumps(report.to_json(any_run), allow_nan=False)
    made = page.page(any_run)
    elements = parsed(made)
    names = {tag for tag, _ in elements.tags}
    known = """html head meta title style body main header nav a p b span h1 h2 h3 dl div dt dd
        section table thead tbody tr th td small wbr button pre svg line circle label select
        option canvas aside details summary footer script"""
    assert names <= set(known.split())
    assert sum(tag == "script" for tag, _ in elements.tags) == 3
    for _, attributes in elements.tags:
        assert not {a for a in attributes if a.startswith("on")} & set(attributes)
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")


@pytest.mark.parametrize("name", ["live", "failed", "hostile", "one objective"])
def test_png(name, tmp_path):
    report.write_png(RUNS[name](), tmp_path / "report.png")
    content = (tmp_path / "report.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["report.png"]


def test_hostile_names_stay_text():
    run = RUNS["hostile"]()
    made = page.page(run)
    shown = " ".join(parsed(made).text)
    assert "<script>alert(1)</script>" in shown
    assert "<img src=x onerror='alert(2)'>" in shown
    assert "\U0001f980 %{x} $\\alpha$ &lt;b&gt;" in shown
    assert "\x1b" not in made
    assert "\u202e" not in made


def test_the_page_needs_no_network(study):
    made = page.page(study)
    packed = re.search(r'<script type="application/gzip" id="plotly">([^<]*)<', made).group(1)
    assert b"plotly.js v" in gzip.decompress(base64.b64decode(packed))[:200]
    assert "default-src 'none'" in made
    assert "color-scheme: light dark" in made
    assert not re.search(r"https?://", made)
    assert len(made) - len(packed) < 2e5


def test_figure_data_cannot_end_its_script():
    assert "<" not in markup.json_text({"x": "</script><!--"})
    assert json.loads(markup.json_text({"x": "</script>", "y": math.nan})) == {
        "x": "</script>",
        "y": None,
    }


def test_scripts_name_no_colour_of_their_own():
    own = Path(page.__file__).parent / "web"
    for script in own.glob("*.js"):
        assert not re.search(r"#[0-9a-fA-F]{3,6}\b", script.read_text()), script.name


def test_verdict_comes_first(study):
    answer = page.verdict(study)
    assert report.text(study).strip().startswith(answer.headline)
    text = "".join(parsed(page.page(study)).text)
    assert text.index(answer.headline) < text.index("On the test documents")


def test_scores_table(study):
    answer = page.verdict(study)
    made = tables.scores_table(study, answer)
    assert made.title == "On the test documents"
    assert "not searched: safety" in made.note
    names = [(c.name, c.unit) for c in made.columns]
    assert ("code", "bits_per_byte \u2193") in names
    assert ("math", "acc \u2191") in names
    assert ("safety", "acc \u2191") in names
    assert len(made.rows) == 10
    rival = next(r for r in made.rows if r.rival)
    assert rival.cells[0].text == answer.rival.name
    assert sum(r.rival for r in made.rows) == 1
    best = next(r for r in made.rows if r.pick == f"trial={answer.trial.number}")
    assert best.cells[3].text.startswith(f"{answer.differences[0][1].mean:+.3f}")
    code = float(best.cells[names.index(("code", "bits_per_byte \u2193"))].text)
    assert code == pytest.approx(-answer.trial.scores.values["code"], abs=1e-3)


def test_rows_carry_the_commands(study):
    run = dataclasses.replace(study, path="my runs/it's")
    row = next(t for t in tables.tables(run) if t.key == "search").rows[0]
    export, verify = row.commands
    number = row.pick.removeprefix("trial=")
    assert export == (
        f"""evomerge export 'my runs/it'"'"'s' --pick trial={number} --out merged/trial-{number}"""
    )
    assert f"pretrained=merged/trial-{number} --tasks" in verify
    assert export in html.unescape(page.page(run))


def test_copies_and_failures(study):
    trials = [*study.trials]
    source = next(t for t in trials if t.kind == "search")
    trials += [dataclasses.replace(source, number=77, copied_from=source.number), s.failed(78)]
    run = dataclasses.replace(study, trials=tuple(trials))
    found = {t.key: t for t in tables.tables(run)}
    assert "ValueError: boom" in found["failures"].rows[0].cells[3].text
    assert found["failures"].rows[0].details.startswith("Traceback")
    assert "1 failed" in facts.progress(run)
    entries = {e["number"]: e for e in report.to_json(run)["trials"]}
    assert entries[77]["copied_from"] == source.number
    assert entries[78]["error"].endswith("boom")
    assert entries[78]["scores"] is None


def test_json(study, tmp_path):
    report.write_json(study, tmp_path / "deep" / "report.json")
    made = json.loads((tmp_path / "deep" / "report.json").read_text("utf-8"))
    assert made == report.to_json(study)
    assert len(made["trials"]) == len(study.trials)
    first = made["trials"][0]
    assert {"number", "kind", "split", "state", "recipe", "scores", "stderr", "error"} <= set(
        first
    )
    assert first["recipe"]["id"] == study.trials[0].recipe.id
    raw, values = first["scores"]["raw"], study.trials[0].scores.values
    assert raw == {"math": values["math"], "code": -values["code"]}
    assert first["scores"]["normalised"]["code"] == 0.0
    assert made["reference"]["base"]["number"] == 0
    assert set(made["reference"]["base"]["mean"]) == {"search", "select", "test"}
    assert made["verdict"]["differences"][0]["against"] == made["verdict"]["rival"]
    assert made["front"]
    assert len(made["finalists"]) == 5


def test_json_of_nan_and_numpy():
    import numpy as np

    value = {"a": math.nan, "b": np.float32(1.5), "c": np.array([1.0, math.inf]), 3: {"x"}}
    assert data.plain(value) == {"a": None, "b": 1.5, "c": [1.0, None], "3": ["x"]}


def test_live_and_comparison():
    run = RUNS["live"]()
    shown = report.text(run)
    assert "So far, " in shown
    assert "7 of 50 trials, 2 running, 1 failed" in shown
    states = [t["state"] for t in report.to_json(run)["trials"]]
    assert states.count("RUNNING") == 2
    entry = {"title": "3 scalars", "run_path": "runs/b", "best": 0.9, "difference": -0.07}
    run = dataclasses.replace(run, meta={"comparison": [{**entry, "low": -0.1, "high": -0.04}]})
    table = next(t for t in tables.tables(run) if t.key == "comparison")
    assert [c.text for c in table.rows[0].cells] == [
        *("3 scalars", "0.900", "-0.070", "-0.100 to -0.040", "runs/b")
    ]


def test_curve_is_the_running_best(study):
    c = progress.progress(study)
    assert c.best == [max(c.scalar[: i + 1]) for i in range(len(c.scalar))]
    assert len(c.trials) == 12


def test_files_are_replaced_in_one_step(study, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    report.write_html(study, path)
    assert path.read_text("utf-8").startswith("<!doctype html>")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(ExportError, match="cannot write"):
        report.write_html(study, path / "below.html")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.12345, "0.123"),
        (-0.0001, "0.000"),
        (math.nan, "\u2013"),
        (123.456, "123.5"),
        (2e6, "2.00e+06"),
    ],
)
def test_numbers(value, shown):
    assert cells.number(value) == shown


def test_durations():
    found = [cells.duration(v) for v in (0.25, 12, 600, 86400)]
    assert found == ["250 ms", "12.0 s", "10.0 min", "24.0 h"]


def test_narrow_terminals(study):
    assert max(map(len, report.text(study, width=72).splitlines()[:40])) <= 110


def test_importing_the_report_is_cheap():
    code = (
        "import sys, evomerge.report, evomerge.choose; heavy = {'plotly', 'matplotlib', 'scipy', "
        "'rich', 'pymoo', 'torch'} & set(sys.modules); sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
