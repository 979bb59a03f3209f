"""How fast the report page is, in a real Chromium without a window.

    python benchmarks/report.py [--trials 2000] [--groups 32] [--repeats 3]

A synthetic run of three objectives and three experts. Measured: writing the page, its size, the
browser's first contentful paint, all plots drawn, and pinning another recipe (the panel and every
plot anew). Medians of the repeats; the last line is one JSON object. Needs selenium (``dev``
extra) and Chromium with chromedriver (Debian: ``apt-get install chromium-driver``).
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

PIN = """
const start = performance.now();
document.querySelectorAll(".steps button")[1].click();
return performance.now() - start;
"""
MARKS = """
const first = (name) => performance.getEntriesByName(name)[0].startTime;
return [first("first-contentful-paint"), first("drawn")];
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
    paint, drawn, pin = (statistics.median(column) for column in zip(*rows, strict=True))
    found = {
        "benchmark": "report",
        "trials": options.trials,
        "groups": options.groups,
        "write_s": round(wrote, 2),
        "megabytes": round(size / 1e6, 2),
        "first_paint_s": round(paint / 1000, 3),
        "all_drawn_s": round(drawn / 1000, 3),
        "pin_s": round(pin / 1000, 3),
    }
    print(json.dumps(found))


def _measure(path: Path, profile: Path) -> tuple[float, float, float]:
    driver = start_chromium(profile)
    try:
        browser = Browser(driver)
        browser.open(path)
        paint, drawn = browser.run(MARKS)
        return paint, drawn, browser.run(PIN)
    finally:
        driver.quit()


if __name__ == "__main__":
    main()
