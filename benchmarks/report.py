"""How fast the report page is, in a real Chromium without a window.

    python benchmarks/report.py [--trials 2000] [--groups 32] [--repeats 3]

A synthetic run of three objectives and three experts. Measured: writing the page, its size, and in
the browser the first contentful paint, the plots near the screen drawn, all plots drawn by a reader
who then scrolls to the end, how long the page was deaf at most (the longest task), and pinning
another recipe (the panel anew, a ring moved in every plot). Medians of the repeats; the last line
is one JSON object. Needs selenium (``dev`` extra) and Chromium with chromedriver (Debian:
``apt-get install chromium-driver``).
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from evomerge.report import write_html
from evomerge.trial import Objective
from tests import synthetic
from tests.report.conftest import Browser, start_chromium

FIGURES = ("first_paint_s", "near_drawn_s", "all_drawn_s", "longest_task_s", "pin_s")
PIN = """
const start = performance.now();
document.querySelectorAll(".steps button")[1].click();
return performance.now() - start;
"""
MARKS = """
const first = (name) => performance.getEntriesByName(name)[0].startTime;
return [first("first-contentful-paint"), first("drawn")];
"""
LONGEST = """
const done = arguments[0], tasks = [0];
new PerformanceObserver((list) => tasks.push(...list.getEntries().map((e) => e.duration)))
  .observe({ type: "longtask", buffered: true });
setTimeout(() => done(Math.max(...tasks)), 200);
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--groups", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if not shutil.which("chromedriver"):
        print(json.dumps({"benchmark": "report", "skipped": "no chromedriver"}))
        return
    objectives = (*synthetic.OBJECTIVES, Objective("chat", "chat", "acc"))
    run = synthetic.study(
        n=options.trials, objectives=objectives, groups=options.groups, documents=40
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        began = time.perf_counter()
        write_html(run, path)
        wrote = time.perf_counter() - began
        size = path.stat().st_size
        rows = [_measure(path, Path(folder) / f"profile{i}") for i in range(options.repeats)]
    figures = [statistics.median(column) for column in zip(*rows, strict=True)]
    found = {
        "benchmark": "report",
        "trials": options.trials,
        "groups": options.groups,
        "write_s": round(wrote, 2),
        "megabytes": round(size / 1e6, 2),
        **{name: round(ms / 1000, 3) for name, ms in zip(FIGURES, figures, strict=True)},
    }
    print(json.dumps(found))


def _measure(path: Path, profile: Path) -> tuple[float, ...]:
    """The figures of one visit, in milliseconds."""
    driver = start_chromium(profile)
    try:
        browser = Browser(driver)
        browser.open(path)
        paint, near = browser.run(MARKS)
        browser.scroll()
        drawn = browser.run("return performance.now()")
        return paint, near, drawn, driver.execute_async_script(LONGEST), browser.run(PIN)
    finally:
        driver.quit()


if __name__ == "__main__":
    main()
