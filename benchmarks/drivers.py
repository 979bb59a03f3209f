"""Every search driver on the same problems: what it reaches after 25, 50, 100, 200 evaluations.

    python benchmarks/drivers.py [--quick] [--only NAME] [--problems A,B] [--seeds N] [--no-docs]

One worker, so each driver has seen everything before it asks again; what parallel workers cost is
``asynchrony.py``'s question. The drivers are those of ``conf/optimizer`` with the settings given
there. Problems: four analytic ones (``landscapes.py``), the merge of three digit classifiers whose
exact front is known (``map_digits.py``), and the zoo: 12 coefficients of blockwise task
arithmetic, scored by lm-eval (a few documents per task; the same ones for every candidate). Where
there are models, their reference points (the base, each expert, the uniform average, a default)
are told to every driver first and count as found. Scores are normalised as everywhere in evomerge.

Two figures, of all points so far: the best weighted mean, and the hypervolume. Each is the median
over the seeds; ``spread`` is the largest minus the smallest. Two drivers tie where their medians
differ by no more than the larger of their spreads.

Every run is kept (``--cache``), keyed by what it depends on: the driver's settings and code, the
problem, the seed (``--keep``: whatever the code). So the benchmark can be stopped, and continued
piece by piece. With everything there it writes the tables and the plot in ``docs/``. The last line
is one JSON object.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import hashlib
import importlib
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from landscapes import (
    Landscape,
    Progress,
    bowls,
    build,
    complete,
    driver_names,
    dtlz2,
    rugged,
    running,
    settings_of,
    zdt1,
)

from evomerge.trial import Scores, Trial

VERSION = 2
"""Raise it when this file measures something else."""
BUDGETS = (25, 50, 100, 200)

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bayesian_mean": ("bayesian", {"scalarise": True})
}
"""Drivers with another setting: name to (driver, settings)."""
ZOO_DOCUMENTS = 20
"""Per task."""
METRICS = {"mean": "best mean", "volume": "hypervolume"}
DOCS = Path(__file__).resolve().parents[1] / "docs"
BEGIN, END = "<!-- tables: written by benchmarks/drivers.py -->", "<!-- end of tables -->"


def zoo(cache: Path) -> Landscape:
    """The zoo, merged and scored in this process; every score is kept by recipe."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from evomerge.cli.build import build_plan
    from evomerge.cli.compose import register_resolvers
    from evomerge.evaluators.base import Evaluator
    from evomerge.executors.base import Job
    from evomerge.executors.worker import Worker, WorkerSpec
    from evomerge.gram import geometry
    from evomerge.resources import resource_folder

    register_resolvers()
    folder = str(Path(str(resource_folder("conf"))).resolve())
    with initialize_config_dir(folder, version_base="1.3"):
        config = compose(
            "config", [f"evaluator.splits={{search: {ZOO_DOCUMENTS}, select: 1, test: 1}}"]
        )
    config.run_name = "benchmark"
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    plan = build_plan(plain)
    evaluator: Evaluator = plan.evaluator
    identity = json.dumps(dict(evaluator.fingerprint()), sort_keys=True, default=str)
    memo = Memo(cache / f"zoo-{hashlib.sha256(identity.encode()).hexdigest()[:12]}.jsonl")

    @functools.cache
    def worker() -> Worker:
        return Worker(WorkerSpec(plan.pool, evaluator, device="cpu", threads=1))

    def scored(trial: Trial) -> Scores:
        found = memo.get(trial.recipe.id)
        if found is None:
            done = worker().run(Job(trial))
            if done.scores is None:
                raise RuntimeError(done.error)
            found = done.scores
            memo.put(trial.recipe.id, found)
        return found

    references = []
    for i, (label, recipe, x) in enumerate(plan.references):
        trial = Trial(i, "reference", x, recipe, label=label)
        references.append(complete(trial, scored(trial)))
    return Landscape(
        "zoo",
        plan.space.dim,
        tuple(o for o in evaluator.objectives if o.guides),
        lambda x: scored(Trial(0, "search", x, plan.space.decode(x))),
        0.0,
        tuple(references),
        plan.space.start,
        geometry(plan.pool, plan.space),
    )


class Memo:
    """Scores by recipe id, in a file that may be torn at its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Scores] = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            documents = {k: np.array(v, dtype=np.float32) for k, v in row["documents"].items()}
            self._known[row["id"]] = Scores(row["values"], row["stderr"], documents)

    def get(self, key: str) -> Scores | None:
        return self._known.get(key)

    def put(self, key: str, scores: Scores) -> None:
        self._known[key] = scores
        documents = {k: v.tolist() for k, v in scores.per_example.items() if v is not None}
        row = {"id": key, "values": dict(scores.values), "stderr": dict(scores.stderr)}
        with self._path.open("a") as file:
            file.write(json.dumps(row | {"documents": documents}) + "\n")


def digits(_: Path) -> Landscape:
    """Three digit classifiers, three coefficients in [0, 1], with the usual reference points."""
    import map_digits

    plain = map_digits.merge(3)
    points = {"base": np.zeros(3)}
    points |= {f"expert {k}": np.eye(3)[k] for k in range(3)}
    points |= {"uniform average": np.full(3, 1 / 3), "default": np.full(3, 0.4)}
    references = tuple(
        dataclasses.replace(complete(running(i, x), plain.score(x)), kind="reference", label=label)
        for i, (label, x) in enumerate(points.items())
    )
    landscape = dataclasses.replace(
        plain, name="digits", references=references, start=points["default"]
    )
    grid = Progress(landscape)  # the same units, for what the exact grid reaches
    names = [o.name for o in landscape.objectives]
    for row in np.load(map_digits.DATA)["grid"].astype(np.float64):
        scores = Scores(dict(zip(names, row.tolist(), strict=True)), {}, {})
        grid.take(complete(running(0, np.zeros(3)), scores))
    return dataclasses.replace(landscape, limit={"mean": grid.mean, "volume": grid.volume})


PROBLEMS: dict[str, Callable[[Path], Landscape]] = {
    "bowls": lambda _: bowls(12),
    "rugged": lambda _: rugged(6),
    "zdt1": lambda _: zdt1(12),
    "dtlz2": lambda _: dtlz2(12),
    "digits": digits,
    "zoo": zoo,
}


def most(landscape: Landscape, driver: str) -> int:
    """Evaluations that are affordable: a zoo candidate takes 0.3 s, an ask of bayesian two."""
    if landscape.name == "zoo":
        return 100
    slow = {"bayesian": (50, 50), "bayesian_mean": (100, 100), "map_quadratic": (100, 200)}
    most = slow.get(driver, (200, 200))
    return most[bool(landscape.references)]


def code_hash(module: str) -> str:
    """Changes when the code of a module or of the drivers' modules that it imports does."""
    seen: set[str] = set()
    digest = hashlib.sha256()
    todo = [module]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        file = importlib.import_module(name).__file__
        tree = ast.parse(Path(str(file)).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
                body[0] = ast.Expr(ast.Constant("")) if _is_text(body[0]) else body[0]
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith(
                "evomerge.optimizers."
            ):
                todo.append(str(node.module))
        digest.update(ast.dump(tree).encode())
        todo.sort()
    return digest.hexdigest()[:12]


def _is_text(node: ast.Expr) -> bool:
    return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def run_once(landscape: Landscape, settings: dict[str, Any], seed: int, n: int) -> dict[str, Any]:
    """One search with one worker.

    Returns:
        ``mean`` and ``volume``: n figures after 1, 2, ... evaluations (as many as the driver
        wanted); ``ask_seconds``: CPU seconds of every ask with the tell before it.
    """
    driver = build(landscape.problem(seed), settings)
    progress = Progress(landscape)
    driver.tell(landscape.references)
    found: dict[str, list[float]] = {"mean": [], "volume": [], "ask_seconds": []}
    first, told = len(landscape.references), 0.0
    for i in range(n):
        start = time.process_time()
        points = driver.ask(1, first + i, ())
        found["ask_seconds"].append(told + time.process_time() - start)
        if not points:
            break  # it is done
        x = np.asarray(points[0], dtype=np.float64)
        trial = complete(running(first + i, x), landscape.score(x))
        progress.take(trial)
        start = time.process_time()
        driver.tell([trial])
        told = time.process_time() - start
        found["mean"].append(progress.mean)
        found["volume"].append(progress.volume)
    return found


def cached_run(
    cache: Path, landscape: Landscape, driver: str, seed: int, n: int, *, keep: bool
) -> dict[str, Any]:
    """:func:`run_once`, from the cache where it was run before with as large a budget.

    Args:
        cache: Folder of the runs.
        landscape: The problem.
        driver: Name of a driver or a variant.
        seed: Of the driver.
        n: Evaluations.
        keep: Whether runs by other versions of the driver's code will do.
    """
    settings = settings_of(*VARIANTS.get(driver, (driver, {})))
    units = [
        [t.label, sorted(t.scores.values.items()) if t.scores else None]
        for t in landscape.references
    ]
    probe = np.random.default_rng(1).random(landscape.dim)
    identity = {
        "version": VERSION,
        "settings": settings,
        "references": units,
        "scores": sorted(landscape.score(probe).values.items()),
        "seed": seed,
    }
    text = json.dumps(identity, sort_keys=True, default=float)
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    code = code_hash(str(settings["_target_"]).rpartition(".")[0])
    stem = f"{landscape.name}-{driver}-{seed}-{key}"
    file = cache / f"{stem}-{code}.json"
    for old in sorted(cache.glob(f"{stem}-*.json")) if keep else [file]:
        found: dict[str, Any] = json.loads(old.read_text()) if old.exists() else {"n": 0}
        if found["n"] >= n:
            return found
    found = run_once(landscape, settings, seed, n) | {"n": n}
    part = file.with_suffix(".part")
    part.write_text(json.dumps(found))
    part.replace(file)
    return found


Figure = dict[str, Any]


def figures_of(runs: Sequence[dict[str, Any]], budgets: Sequence[int]) -> Figure:
    """Median, lowest and highest over the seeds, by metric and budget; and seconds per ask."""
    asks = [s for r in runs for s in r["ask_seconds"]]
    found: Figure = {
        "ask_seconds_median": round(float(np.median(asks)), 4),
        "ask_seconds_longest": round(float(np.max(asks)), 3),
    }
    for metric in METRICS:
        found[metric] = {}
        for budget in budgets:
            values = [r[metric][min(budget, len(r[metric])) - 1] for r in runs]
            row = [float(f(values)) for f in (np.median, np.min, np.max)]
            found[metric][str(budget)] = [round(v, 5) for v in row]
    return found


def leaders(rows: dict[str, Figure], metric: str, budget: str) -> list[str]:
    """The driver with the best median, and those that tie with it, best first."""
    have = {d: r[metric][budget] for d, r in rows.items() if budget in r[metric]}
    if not have:
        return []
    order = sorted(have, key=lambda d: -have[d][0])
    best = have[order[0]]
    return [
        d for d in order
        if best[0] - have[d][0] <= max(best[2] - best[1], have[d][2] - have[d][1])
    ]  # fmt: skip


def table(rows: dict[str, Figure], metric: str, limit: float | None) -> str:
    """One markdown table: a row per driver, a column per budget; bold: best, or a tie with it."""
    budgets = sorted({int(b) for r in rows.values() for b in r[metric]})
    lines = [f"| driver | {' | '.join(map(str, budgets))} |", "|---" * (1 + len(budgets)) + "|"]
    bold = {b: leaders(rows, metric, str(b)) for b in budgets}
    last = {d: list(r[metric].values())[-1][0] for d, r in rows.items()}
    for driver in sorted(rows, key=lambda d: -last[d]):
        cells = [driver]
        for b in budgets:
            middle, low, high = rows[driver][metric].get(str(b), (np.nan, 0, 0))
            mark = "**" if driver in bold[b] else ""
            half = (high - low) / 2
            cells.append("" if np.isnan(middle) else f"{mark}{middle:.3f}{mark} ±{half:.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    if limit is not None:
        known = " | ".join([f"{limit:.3f}"] * len(budgets))
        lines.append(f"| *limit; digits: the grid* | {known} |")
    return "\n".join(lines)


def tables(figures: dict[str, dict[str, Figure]], limits: dict[str, dict[str, float]]) -> str:
    """Everything that goes between the markers of ``docs/drivers.md``."""
    parts = ["### Who leads", "", "The best median, and those that tie with it, best first.", ""]
    parts += [f"| problem | figure | {' | '.join(map(str, BUDGETS))} |", "|---" * 6 + "|"]
    for problem, rows in figures.items():
        for metric, title in METRICS.items():
            cells = [", ".join(leaders(rows, metric, str(b))) for b in BUDGETS]
            parts.append(f"| {problem} | {title} | {' | '.join(cells)} |")
    parts += ["", "### CPU seconds per ask, with the tell before it", ""]
    parts += ["| driver | median | longest |", "|---|---|---|"]
    for driver in sorted({d for rows in figures.values() for d in rows}):
        have = [rows[driver] for rows in figures.values() if driver in rows]
        middle = float(np.median([r["ask_seconds_median"] for r in have]))
        longest = max(r["ask_seconds_longest"] for r in have)
        parts.append(f"| {driver} | {middle:.4f} | {longest:.2f} |")
    for problem, rows in figures.items():
        for metric, title in METRICS.items():
            parts += ["", f"### {problem}: {title}", ""]
            parts.append(table(rows, metric, limits[problem].get(metric)))
    return "\n".join(parts)


def plot(curves: dict[str, dict[str, list[dict[str, Any]]]], file: Path) -> None:
    """Median curves, one panel per problem and figure; the band is the range over the seeds."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = sorted({d for runs in curves.values() for d in runs})
    colours = dict(zip(names, mpl.colormaps["tab20"].colors, strict=False))
    fig, axes = plt.subplots(
        len(METRICS), len(curves), figsize=(3.1 * len(curves), 5.6), squeeze=False, sharex="col"
    )
    for column, (problem, drivers) in enumerate(curves.items()):
        for row, (metric, title) in enumerate(METRICS.items()):
            axis = axes[row, column]
            lows = []
            for driver, runs in drivers.items():
                n = min(len(r[metric]) for r in runs)
                Y = np.array([r[metric][:n] for r in runs])
                x, middle = np.arange(1, n + 1), np.median(Y, axis=0)
                lows.append(middle[min(9, n - 1)])
                axis.plot(x, middle, color=colours[driver], label=driver, linewidth=1.2)
                axis.fill_between(
                    x, Y.min(axis=0), Y.max(axis=0), color=colours[driver], alpha=0.1, linewidth=0
                )
            axis.set_ylim(bottom=min(lows))
            axis.set_title(f"{problem}: {title}", fontsize=9)
            axis.tick_params(labelsize=7)
        axes[-1, column].set_xlabel("evaluations", fontsize=8)
    handles = {
        label: handle
        for axis in axes.flat
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    fig.legend(
        handles.values(), handles.keys(), loc="lower center", ncols=len(handles), fontsize=8
    )
    fig.tight_layout(rect=(0, 0.05, 1, 1))
    fig.savefig(file, dpi=80)
    plt.close(fig)


def write_docs(text: str) -> None:
    """Puts the tables between the markers of ``docs/drivers.md``; what is around them stays."""
    page = DOCS / "drivers.md"
    old = page.read_text(encoding="utf-8") if page.exists() else f"{BEGIN}\n{END}\n"
    before, _, rest = old.partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="one seed, 25 evaluations, no docs")
    parser.add_argument("--only", help="one driver or several, with commas; no docs")
    parser.add_argument("--problems", help="one or several, with commas; no docs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--no-docs", action="store_true", help="leave docs/ as it is")
    parser.add_argument(
        "--keep", action="store_true", help="also take runs by other versions of a driver's code"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "evomerge-drivers"
    )
    o = parser.parse_args()
    o.cache.mkdir(parents=True, exist_ok=True)
    seeds, budgets = (1, BUDGETS[:1]) if o.quick else (o.seeds, BUDGETS)
    names = o.only.split(",") if o.only else sorted([*driver_names(), *VARIANTS])
    figures: dict[str, dict[str, Figure]] = {}
    limits: dict[str, dict[str, float]] = {}
    curves: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for problem in o.problems.split(",") if o.problems else PROBLEMS:
        landscape = PROBLEMS[problem](o.cache)
        limits[problem] = dict(landscape.limit)
        figures[problem], curves[problem] = {}, {}
        for driver in names:
            if driver == "grid" and landscape.dim > 3:
                continue
            run = [b for b in budgets if b <= most(landscape, driver)]
            runs = [
                cached_run(o.cache, landscape, driver, s, run[-1], keep=o.keep)
                for s in range(seeds)
            ]
            curves[problem][driver] = runs
            figures[problem][driver] = row = figures_of(runs, run)
            shown = " ".join(f"{m} {row[m][str(run[-1])]}" for m in METRICS)
            print(f"{problem:7} {driver:14} {run[-1]:4} {shown}"
                  f" ask {row['ask_seconds_median']:.4f} s", flush=True)  # fmt: skip
    text = tables(figures, limits)
    print(text)
    if not (o.quick or o.only or o.problems or o.no_docs):
        write_docs(text)
        plot(curves, DOCS / "drivers.png")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
