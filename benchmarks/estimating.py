"""A full score guessed from few documents: which way is best, and do its error bars hold?

    python benchmarks/estimating.py [--trials 120] [--documents 300] [--only-known] [--write]

Candidates of the zoo (`answers.py`; their answers are kept in the cache folder, half an hour on
one core the first time) and of the digits, in the order of a search. Every way of `estimators.py`
is given the first T trials in full and k documents of each later one, the same k for all of them,
and predicts their mean over all documents: nothing of a predicted candidate is ever seen beside
its k documents. By objective, T, k and subset:

* ``ratio``: root mean square error over that of the mean of a random subset of the same size;
* ``coverage``: share of candidates whose truth lies within 1.645 standard errors;
* ``rank``: Spearman's correlation between estimates and truth among the candidates.

Ratios are averaged geometrically, the others plainly. ``--write`` puts the tables into
docs/estimating.md. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from answers import Answers, digit_answers, zoo_answers
from estimators import METHODS
from scipy.stats import spearmanr

from evomerge.cache import cache_folder

TRIALS = (10, 20, 40, 80)
SHARES = (0.05, 0.1, 0.2, 0.4)
LEAST, MOST = 15, 40
"""Candidates to predict, those that come next; a T that leaves fewer is left out."""
BASELINE = "subset mean"
DOCS = Path(__file__).resolve().parents[1] / "docs" / "estimating.md"
BEGIN, END = "<!-- tables: written by benchmarks/estimating.py -->", "<!-- end of tables -->"


class Cell(NamedTuple):
    """One method's figures for one objective, T and share of documents."""

    objective: str
    trials: int
    share: float
    method: str
    error: float
    coverage: float
    rank: float
    baseline: float


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=120)
    parser.add_argument("--documents", type=int, default=300)
    parser.add_argument("--subsets", type=int, default=4, help="of documents, per k")
    parser.add_argument("--only-known", action="store_true")
    parser.add_argument("--write", action="store_true")
    o = parser.parse_args()
    start = time.perf_counter()
    zoo = zoo_answers(o.trials, o.documents, cache_folder() / "estimating", o.only_known)
    cells = compare(zoo, o.subsets)
    cells += compare(digit_answers(o.trials, o.documents), o.subsets)
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
    text = tables(cells)
    print(text)
    if o.write:
        page = DOCS.read_text(encoding="utf-8")
        head, rest = page.split(BEGIN)
        DOCS.write_text(f"{head}{BEGIN}\n\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")
    print(json.dumps({m: figures([c for c in cells if c.method == m]) for m in METHODS}))


def compare(answers: Answers, subsets: int) -> list[Cell]:
    """Every method on every objective, T and share."""
    cells = []
    for objective, values in answers.values.items():
        binary = bool(np.isin(values, (0, 1)).all())
        for trials in (t for t in TRIALS if len(values) - t >= LEAST):
            for share in SHARES:
                rows = [
                    (name, *_scored(answers, objective, trials, share, name, subsets=subsets))
                    for name, (_, _, hits_only) in METHODS.items()
                    if binary or not hits_only
                ]
                base = next(error for name, error, _, _ in rows if name == BASELINE)
                cells += [Cell(objective, trials, share, *row, base) for row in rows]
    return cells


def _scored(
    answers: Answers, objective: str, trials: int, share: float, method: str, *, subsets: int
) -> tuple[float, float, float]:
    """Error, coverage and rank of one method over some subsets."""
    chooser, estimator, _ = METHODS[method]
    history, later = np.split(answers.values[objective], [trials])
    later = later[:MOST]
    truth, k = later.mean(axis=1), round(share * later.shape[1])
    misses, covered, ranks = [], [], []
    for subset in range(subsets):
        chosen = chooser(history, k, np.random.default_rng(subset))
        seen = np.zeros(later.shape[1], dtype=bool)
        seen[chosen] = True
        values = [answers.partial(objective, trials + i, chosen) for i in range(len(later))]
        mean, stderr = estimator(history, seen, np.array(values))
        misses.append(mean - truth)
        covered.append(np.abs(mean - truth) <= 1.6449 * stderr + 1e-12)
        ranks.append(spearmanr(mean, truth).statistic if np.ptp(mean) else 0.0)
    return (
        float(np.sqrt(np.square(misses).mean())),
        float(np.mean(covered)),
        float(np.mean(ranks)),
    )


def figures(cells: Iterable[Cell]) -> dict[str, float]:
    """Ratio, coverage and rank, averaged."""
    cells = list(cells)
    ratio = np.exp(np.mean([np.log(c.error / c.baseline) for c in cells]))
    return {
        "ratio": round(float(ratio), 3),
        "coverage": round(float(np.mean([c.coverage for c in cells])), 3),
        "rank": round(float(np.mean([c.rank for c in cells])), 3),
    }


def tables(cells: list[Cell]) -> str:
    """Markdown: the methods over everything, then ratio and coverage by T, k and objective."""
    hits = {c.objective for c in cells if c.method == "2PL p-IRT"}
    lines = [
        "| documents, estimator | ratio | coverage | rank | hits only: ratio | coverage | rank |",
        "|---|---|---|---|---|---|---|",
    ]
    for method in METHODS:
        own = [c for c in cells if c.method == method]
        parts = [own if {c.objective for c in own} - hits else []]
        parts.append([c for c in own if c.objective in hits])
        row = [f"{v:.2f}" for p in parts for v in (figures(p).values() if p else [])]
        row = ["", "", "", *row] if not parts[0] else row
        lines.append(f"| {method} | " + " | ".join(row) + " |")
    groups: dict[str, Callable[[Cell], object]] = {
        "trials": lambda c: f"T = {c.trials}",
        "share": lambda c: f"k = {c.share:.0%}",
        "objective": lambda c: c.objective,
    }
    for key in groups.values():
        names = list(dict.fromkeys(key(c) for c in cells))
        lines += ["", "| ratio (coverage) | " + " | ".join(map(str, names)) + " |"]
        lines.append("|---" * (len(names) + 1) + "|")
        for method in METHODS:
            row = []
            for name in names:
                own = [c for c in cells if c.method == method and key(c) == name]
                f = figures(own) if own else None
                row.append(f"{f['ratio']:.2f} ({f['coverage']:.2f})" if f else "")
            lines.append(f"| {method} | " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
