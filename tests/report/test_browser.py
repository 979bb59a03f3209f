"""The pages in a real Chromium: everything is drawn, and everything answers."""

from __future__ import annotations

import base64
import dataclasses
import math
import time
from pathlib import Path

import numpy as np
import pytest

from evomerge.cli import main
from evomerge.report import many_page, page
from evomerge.report.many import compare
from evomerge.trial import Objective, TrialState
from tests import synthetic as s
from tests.report.test_report import HOSTILE, RUNS

DARK = "rgb(20, 25, 27)"
THREE = (*s.OBJECTIVES, Objective("chat", "chat", "acc"))
PLACES = "return [...document.querySelectorAll('.plot, .heat, #lines')]"
EMPTY = f"{PLACES}.filter((p) => !p.dataset.drawn || p.clientHeight < 60).map((p) => p.id)"
WHERE = """
const plot = document.getElementById("plot-front"), box = plot.getBoundingClientRect();
const { xaxis, yaxis } = plot._fullLayout;
const at = (trace, k) => [xaxis.d2p(trace.x[k]), yaxis.d2p(trace.y[k])];
const all = plot.data.filter((t) => t.customdata).flatMap((t) => t.x.map((_, k) => at(t, k)));
const marks = plot.data.find((t) => t.name === arguments[0] && t.customdata);
const within = (v, size) => v > 9 && v < size - 9;
const inside = ([x, y]) => within(x, xaxis._length) && within(y, yaxis._length);
const near = ([x, y]) => all.filter(([u, v]) => Math.hypot(u - x, v - y) < 9);
const free = (spot) => inside(spot) && near(spot).length === 1;
const k = marks.x.findIndex((_, j) => free(at(marks, j)));
const [x, y] = at(marks, k);
return [box.left + xaxis._offset + x, box.top + yaxis._offset + y, marks.customdata[k]];
"""
HOVERED = "return document.querySelector('#plot-front .hoverlayer').textContent"


def pruned(trial, share=0.3):
    """The trial as a race would have stopped it: an estimate from the first documents."""
    rows = {}
    for name, row in trial.scores.per_example.items():
        rows[name] = np.where(np.arange(len(row)) < share * len(row), row, np.nan)
    return dataclasses.replace(
        trial, state=TrialState.PRUNED, scores=s.scores(rows, {"merge": 0.1, "score": 0.6})
    )


def study(n=40, **more):
    """Three objectives, one trial in six stopped early."""
    run = s.study(n=n, objectives=THREE, **more)
    trials = [
        pruned(t) if t.kind == "search" and t.number % 6 == 0 and t.split == "search" else t
        for t in run.trials
    ]
    finals = {t.number for t in trials if t.split == "test"}
    whole = {t.number: t for t in run.trials if t.split == "search"}
    trials = [whole[t.number] if t.number in finals and t.split == "search" else t for t in trials]
    return dataclasses.replace(run, trials=tuple(trials))


@pytest.fixture(scope="module")
def run():
    return study()


@pytest.mark.parametrize(("place", "width"), [("desktop", 1280), ("phone", 390)])
def test_everything_is_drawn(opened, run, place, width):
    browser = opened(page.page(run), read=False, width=width)
    assert browser.run(f"{PLACES}.length") == 6
    assert "plot-volume" in browser.run(EMPTY), "far below the screen, and drawn at once"
    browser.scroll()
    assert browser.run(EMPTY) == []
    assert browser.run("return document.documentElement.scrollWidth") <= width
    estimates = sum(t.state is TrialState.PRUNED for t in run.trials)
    for key, lines in (("front", 2), ("best", 1)):
        found = browser.run(
            f"const t = document.getElementById('plot-{key}').data;"
            "const named = (name) => t.find((l) => l.name === name);"
            "const ends = named('intervals').x.filter((v) => v !== null).length;"
            "return [named('stopped early (95% interval)').x.length, ends / 2]"
        )
        assert found == [estimates, lines * estimates]
    browser.picture(f"report-{place}-light")
    ink = "return document.querySelector('#plot-front .xtick text').style.fill"
    light = browser.run(ink)
    browser.scheme(dark=True)
    browser.wait(f"{ink} !== '{light}'")
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == DARK
    browser.picture(f"report-{place}-dark")


def test_a_click_fills_the_recipe_panel(opened, run):
    browser = opened(page.page(run))
    browser.run("document.getElementById('plot-front').scrollIntoView({ behavior: 'instant' })")
    x, y, index = browser.run(WHERE, "trials")
    number = browser.run("return JSON.parse(document.getElementById('data').textContent)")[
        "trials"
    ]["number"][index]
    assert browser.run("return document.getElementById('panel').dataset.trial") != str(number)
    browser.mouse(x, y)
    browser.wait(HOVERED)
    told = browser.run(HOVERED)
    assert told.startswith(f"trial {number}")
    assert "linear: weight" in told
    for _ in range(10):  # plotly drops a click that comes faster than its hover, as no hand does
        browser.mouse(x, y, click=True)
        time.sleep(0.3)
        if browser.run("return document.getElementById('panel').dataset.trial") == str(number):
            break
    panel = browser.run("return document.getElementById('panel').textContent")
    assert f"evomerge export runs/demo --pick trial={number} --out merged/trial-{number}" in panel
    assert f"pretrained=merged/trial-{number} --tasks" in panel
    trial = next(t for t in run.trials if t.number == number and t.split == "search")
    shown = browser.run("return document.querySelector('#panel .heat').data[0].z")
    np.testing.assert_allclose(shown, trial.recipe.coefficients["weight"], rtol=1e-4)
    assert f"{trial.scores.values['math']:.3f}" in panel
    ring = (
        "const p = document.getElementById('plot-front');"
        "const r = p.querySelector('.scatterlayer .trace:last-child path').getBoundingClientRect();"
        "return [r.left + r.width / 2 - arguments[0], r.top + r.height / 2 - arguments[1]]"
        ".every((gap) => Math.abs(gap) < 2)"
    )
    browser.wait(ring, 60, x, y)


def test_a_drag_zooms_and_a_double_click_shows_everything(opened, run):
    browser = opened(page.page(run))
    browser.run("document.getElementById('plot-front').scrollIntoView({ behavior: 'instant' })")
    view = (
        "const l = document.getElementById('plot-front')._fullLayout;"
        "return [l.xaxis.range, l.yaxis.range].flat()"
    )
    before = browser.run(view)
    left, top, width, height = browser.run(
        "const p = document.getElementById('plot-front'), { xaxis, yaxis } = p._fullLayout;"
        "const b = p.getBoundingClientRect();"
        "return [b.left + xaxis._offset, b.top + yaxis._offset, xaxis._length, yaxis._length]"
    )
    middle, corner = (left + width / 2, top + height / 2), (left + width, top)
    browser.mouse(*middle, (middle[0] + 40, middle[1] - 40), corner)
    x0, x1, y0, y1 = before
    wanted = [(x0 + x1) / 2, x1, (y0 + y1) / 2, y1]
    np.testing.assert_allclose(browser.run(view), wanted, atol=0.01)

    def twice(until):
        for _ in range(10):  # two clicks that a busy machine sees late are two single ones
            browser.mouse(*middle, click=True)
            browser.mouse(*middle, click=True)
            time.sleep(0.5)
            if until():
                return

    twice(lambda: browser.run(view) == before)
    assert browser.run(view) == before
    twice(lambda: browser.run(view) != before)
    x0, x1, y0, y1 = browser.run(view)
    shown = [t.scores.values for t in run.trials if t.split == "search"]
    assert x0 < min(v["math"] for v in shown) < max(v["math"] for v in shown) < x1
    assert y1 < min(-v["code"] for v in shown) < max(-v["code"] for v in shown) < y0, "a loss"


def test_a_stopped_trial_says_why_and_how_surely(opened):
    run = study(pareto=False)
    number = max(t.number for t in run.trials if t.state is TrialState.PRUNED)
    trials = [
        dataclasses.replace(t, raced_after=20) if t.number == number else t for t in run.trials
    ]
    browser = opened(page.page(dataclasses.replace(run, trials=tuple(trials))))
    browser.run(
        "const f = document.getElementById('find'); f.value = arguments[0];"
        "f.dispatchEvent(new Event('change'))",
        number,
    )
    told = [t for t in trials if t.split == "search"][:20]
    scale = run.scale()
    complete = [t for t in told if t.state is TrialState.COMPLETE]
    rival = max(complete, key=lambda t: scale.scalar(t.scores.values))
    line = browser.run("return document.querySelector('#panel .stopped').textContent")
    asked = 3 * 48
    assert line.startswith(
        f"Stopped after {asked} of 480 documents: it could not overtake {rival.name} any more."
    )
    assert "estimates: mean normalised 0." in line
    browser.picture("report-stopped")


def test_choosing_axes_colour_and_time(opened, run):
    browser = opened(page.page(run))
    titles = (
        "const l = document.getElementById('plot-front').layout;"
        "const bar = l.coloraxis?.colorbar ?? { title: { text: '' } };"
        "return [l.xaxis, l.yaxis, bar].map((a) => a.title.text)"
    )
    choose = (
        "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
        "s.dispatchEvent(new Event('change'))"
    )
    named = [
        "math \u00b7 acc \u2191",
        "code \u00b7 bits_per_byte \u2193",
        "chat \u00b7 acc \u2191",
    ]
    assert browser.run(titles) == named
    browser.run(choose, "across", "2")
    browser.run(choose, "paint", "0")
    assert browser.run(titles) == [named[2], named[1], named[0]]
    browser.run(choose, "up", "2")  # the same twice is no plot: the other axis moves on
    assert browser.run(titles) == [named[0], named[2], named[0]]
    browser.run(choose, "paint", "front")
    assert browser.run(titles)[2] == ""
    x = "return document.getElementById('plot-best').data.at(-2).x.at(-1)"
    assert browser.run(x) == 40
    browser.run(choose, "over", "time")
    spent = sum(
        sum(t.scores.seconds.values())
        for t in run.trials
        if t.kind == "search" and t.split == "search"
    )
    assert math.isclose(browser.run(x), spent, rel_tol=1e-4)


def test_rows_steps_brush_and_theme(opened, run):
    browser = opened(page.page(run))
    pinned = "return document.getElementById('panel').dataset.trial"
    row = browser.run("const b = document.querySelectorAll('button.pin')[1]; b.click(); return b")
    assert browser.run(pinned) == row.get_attribute("data-pin")
    before = browser.run(pinned)
    browser.run("document.querySelectorAll('.steps button')[1].click()")
    assert browser.run(pinned) != before
    more = "const b = document.querySelector('button.more'); b.click(); return "
    opens = "document.getElementById(b.getAttribute('aria-controls')).hidden"
    assert browser.run(more + opens) is False
    count = "return Number(document.getElementById('lines').dataset.lines)"
    lines = browser.run(count)
    left, top, height = browser.run(
        "const c = document.getElementById('lines');"
        "c.scrollIntoView({ behavior: 'instant', block: 'center' });"
        "const b = c.getBoundingClientRect(); return [b.left, b.top, b.height]"
    )
    browser.mouse(left + 54, top + 42, (left + 54, top + 100), (left + 54, top + height / 2))
    browser.wait(f"{count} < {lines}")
    assert browser.run(count) > 0
    browser.mouse(left + 54, top + 60, click=True)
    browser.wait(f"{count} === {lines}")
    ink = "return getComputedStyle(document.body).color"
    light = browser.run(ink)
    browser.run("document.getElementById('theme').click()")
    assert browser.run(ink) != light


@pytest.mark.parametrize(
    "name", ["empty", "references", "live", "one objective", "five objectives"]
)
def test_no_run_breaks_the_page(opened, name):
    browser = opened(page.page(RUNS[name]()))
    assert browser.run(EMPTY) == []
    assert browser.run("return document.querySelector('h1').textContent")


def test_hostile_names_stay_text(opened):
    browser = opened(page.page(RUNS["hostile"]()))
    assert browser.run("return document.querySelectorAll('img, body b *, iframe').length") == 0
    assert browser.run("return document.querySelectorAll('script').length") == 4  # ours, plotly
    shown = browser.run("return document.body.textContent")
    for name in HOSTILE[:3]:
        assert name in shown
    axis = browser.run("return document.querySelector('#plot-front .xtitle').textContent")
    assert axis.startswith("<script>alert(1)</script>")
    panel = browser.run("return document.getElementById('panel').innerText")
    assert "<script>alert(1)</script> 0" in panel
    browser.picture("report-hostile")


def test_thousands_of_trials(opened):
    browser = opened(page.page(s.study(n=2000, objectives=THREE, groups=12, documents=40)), read=False)
    paint = browser.run(
        "return performance.getEntriesByName('first-contentful-paint')[0].startTime"
    )
    assert paint < 2000
    browser.scroll()
    assert browser.run(EMPTY) == []
    browser.picture("report-thousands")


def test_many_runs(opened):
    runs = []
    for k, (driver, gain) in enumerate((("cma_es", 0.2), ("random", 0.02))):
        for seed in range(3):
            made = s.study(n=24, seed=10 * k + seed, gain=gain, objectives=THREE, optimizer=driver)
            meta = {**made.meta, "seed": seed}
            runs.append(dataclasses.replace(made, path=Path(f"{driver}-s{seed}"), meta=meta))
    browser = opened(many_page.page(compare(runs)))
    assert browser.run(EMPTY) == []
    assert browser.run("return document.querySelector('h1').textContent") == "cma_es is ahead"
    names = (
        "return document.getElementById('plot-best').data.map((t) => t.name)"
        ".filter(Boolean)"
    )
    assert browser.run(names) == ["cma_es", "random"]
    browser.picture("many-desktop-light")


@pytest.mark.slow
def test_a_real_search_of_the_zoo(opened, tmp_path):
    folder = tmp_path / "run"
    documents = [
        f"evaluator.splits.{k}={v}" for k, v in {"search": 60, "select": 40, "test": 60}.items()
    ]
    what = ["optimizer=nsga2", "executor=local", "n_trials=25", "search_space=global", *documents]
    assert main(["search", "--quiet", f"run_dir={folder}", *what]) == 0
    for place, width in (("desktop", 1280), ("phone", 390)):
        browser = opened((folder / "report.html").read_text("utf-8"), width=width)
        assert browser.run(EMPTY) == []
        assert browser.run("return document.documentElement.scrollWidth") <= width
        browser.picture(f"zoo-{place}")


def test_paper(opened, run):
    browser = opened(page.page(run), read=False, width=816, dark=True)
    ink = "return getComputedStyle(document.body).backgroundColor"
    assert browser.run(ink) == DARK
    browser.medium("print")
    assert "plot-volume" in browser.run(EMPTY)
    browser.run("dispatchEvent(new Event('beforeprint'))")  # as the print dialogue does
    assert browser.run(EMPTY) == []
    wide = "[...document.querySelectorAll('.plot')].filter((p) => p.layout.width > p.clientWidth)"
    assert browser.run(f"return {wide}.map((p) => p.id)") == []
    assert browser.run(ink) == "rgb(255, 255, 255)"
    browser.picture("report-paper")
    browser.run("dispatchEvent(new Event('afterprint'))")
    browser.medium("")
    made = browser.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"]
    assert base64.b64decode(made).startswith(b"%PDF")
