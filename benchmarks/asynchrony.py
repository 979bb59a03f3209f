"""What it costs a driver that no worker ever waits for another.

    python benchmarks/asynchrony.py [--quick] [--only NAME] [--seeds N]

Evaluations are simulated on a virtual clock: their times are log-normal (median 1, sigma 1, so a
batch of 64 waits eleven times the median for its slowest). The score is a smooth 12- or
24-dimensional problem with two objectives, without noise (``landscapes.bowls``), and the drivers
are the real ones, from ``conf/optimizer``. Two runs of each, per seed:

* synchronous: a batch of points, all of them waited for and told, then the next batch. The batch
  is the population where a driver has one (cma_es, de: the number of workers W; nsga2, nsga3: 2 W)
  and W otherwise. Its target is what it has reached after 30 W evaluations, median over the seeds.
* asynchronous: a worker gets a new point the moment it is free, whatever is pending.

Figures, per driver, number of workers and dimension; below 1 the asynchronous run is better:

* ``utilisation``: share of the workers' time spent evaluating, up to the last point handed out;
* ``evaluations_ratio``: evaluations after which the median run reaches the target, over those of
  the synchronous one (first time its own median gets there);
* ``time_ratio``: the same in virtual time.

Asks and tells take no virtual time here: they cost milliseconds, and ``ask_ms`` is measured (CPU
time, here and below). The two drivers whose ask costs about a second, bayesian and map_quadratic,
are measured in small budgets instead: seconds of an ask by pending and told; the hypervolume by
batch at equal evaluations, and the largest useful batch (neither it nor a smaller one falls behind
one at a time by more than the latter's range over the seeds); how many workers they keep busy with
evaluations of a minute's median.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import json
import statistics
import time
from typing import Any

import numpy as np
from landscapes import (
    Landscape,
    Progress,
    bowls,
    build,
    complete,
    driver_names,
    running,
    settings_of,
)

from evomerge.optimizers.base import Optimizer
from evomerge.trial import Trial

SIGMA = 1.0
MEAN_SECONDS = float(np.exp(SIGMA**2 / 2))
"""Mean of one evaluation, in medians."""
GENERATIONS = 30
"""Synchronous budget, in evaluations per worker."""
PATIENCE = 1.6
"""The asynchronous run gives up after this many times the synchronous budget."""
POPULATIONS = {"cma_es": 1, "de": 1, "nsga2": 2, "nsga3": 2}
"""Population in numbers of workers."""
SLOW = {"bayesian": (48, 3), "map_quadratic": (80, 5)}
"""Evaluations and seeds of drivers whose ask takes about a second."""


@dataclasses.dataclass
class Curve:
    """What one run had reached: best value so far after each told trial, and when.

    ``ask_seconds`` are CPU seconds, per point, with the tell before it.
    """

    best: list[float]
    seconds: list[float]
    utilisation: float
    ask_seconds: list[float]


def duration(seed: int, number: int) -> float:
    """Virtual time of one evaluation; the same in both runs."""
    rng = np.random.default_rng((seed, number, 99))
    return float(np.exp(SIGMA * rng.standard_normal()))


def simulate(
    landscape: Landscape, driver: Optimizer, *, seed: int, workers: int, batch: int, n: int
) -> Curve:
    """Runs ``n`` evaluations.

    Args:
        landscape: What is scored.
        driver: What asks.
        seed: Of the durations.
        workers: How many evaluations run at once.
        batch: 0: asynchronous. Else so many points are asked for and told together; a free worker
            takes the next one of them.
        n: Budget.

    Returns:
        Its curve. In a batch, too, a value counts from the moment its own evaluation ended.
    """
    progress = Progress(landscape, with_references=False)
    driver.tell(landscape.references)
    queue: list[tuple[float, int]] = []  # (end, number) of what runs
    spans: list[tuple[float, float]] = []
    pending: dict[int, Trial] = {}
    waiting: list[Trial] = []
    curve = Curve([], [], 1.0, [])
    first = number = len(landscape.references)
    now = telling = 0.0
    while len(curve.best) < n:
        wanted = min(batch or workers - len(queue), first + n - number)
        if wanted > 0:
            start = time.process_time()
            points = driver.ask(wanted, number, list(pending.values()))
            took = telling + time.process_time() - start
            curve.ask_seconds += [took / max(1, len(points))] * len(points)
            waiting = [running(number + i, x) for i, x in enumerate(points)]
            pending |= {t.number: t for t in waiting}
            number += len(points)
        if not pending:
            break  # the driver is done
        told: list[Trial] = []
        while waiting or (queue and (batch or not told)):
            while waiting and len(queue) < workers:
                trial = waiting.pop(0)
                spans.append((now, now + duration(seed, trial.number)))
                heapq.heappush(queue, (spans[-1][1], trial.number))
            if batch or not told:
                now, which = heapq.heappop(queue)
                trial = pending[which]
                told.append(complete(trial, landscape.score(np.asarray(trial.x))))
                progress.take(told[-1])
                curve.best.append(progress.volume if driver.pareto else progress.mean)
                curve.seconds.append(now)
        for trial in told:
            del pending[trial.number]
        start = time.process_time()
        driver.tell(sorted(told, key=lambda t: t.number))
        telling = time.process_time() - start
    last = max(start for start, _ in spans)
    busy = sum(min(end, last) - start for start, end in spans)
    curve.utilisation = busy / (workers * last) if last else 1.0
    return curve


def median_curve(curves: list[Curve], name: str) -> np.ndarray:
    """Element-wise median over the seeds."""
    n = min(len(c.best) for c in curves)
    return np.median([getattr(c, name)[:n] for c in curves], axis=0)


def first(values: np.ndarray, target: float) -> int | None:
    """Index of the first value that reaches the target."""
    hits = np.flatnonzero(values >= target - 1e-12)
    return int(hits[0]) if len(hits) else None


def reached_at(curves: list[Curve], target: float) -> float | None:
    """Virtual time at which the median run has reached the target."""
    times = np.unique(np.concatenate([c.seconds for c in curves]))
    values = []
    for c in curves:
        index = np.searchsorted(c.seconds, times, side="right") - 1
        values.append(np.where(index >= 0, np.array([*c.best, 0.0])[index], -np.inf))
    hit = first(np.median(values, axis=0), target)
    return None if hit is None else float(times[hit])


def compare(name: str, landscape: Landscape, workers: int, seeds: int) -> dict[str, Any]:
    """Both runs of one driver, over the seeds, and their figures."""
    share = POPULATIONS.get(name)
    key = {"cma_es": "popsize"}.get(name, "pop_size")
    overrides = {} if share is None else {key: share * workers}
    settings = settings_of(name, overrides)
    n = GENERATIONS * workers
    runs: dict[bool, list[Curve]] = {False: [], True: []}
    for seed in range(seeds):
        for asynchronous in (False, True):
            runs[asynchronous].append(
                simulate(
                    landscape,
                    build(landscape.problem(seed), settings),
                    seed=seed,
                    workers=workers,
                    batch=0 if asynchronous else (share or 1) * workers,
                    n=int(n * PATIENCE) if asynchronous else n,
                )
            )
    target = float(np.median([c.best[-1] for c in runs[False]]))
    sync_n = first(median_curve(runs[False], "best"), target)
    async_n = first(median_curve(runs[True], "best"), target)
    sync_t, async_t = reached_at(runs[False], target), reached_at(runs[True], target)
    return {
        "utilisation": round(statistics.median(c.utilisation for c in runs[True]), 3),
        "synchronous_utilisation": round(statistics.median(c.utilisation for c in runs[False]), 3),
        "evaluations_ratio": _ratio(None if async_n is None else async_n + 1, (sync_n or 0) + 1),
        "time_ratio": _ratio(async_t, sync_t or 1.0),
        "target": round(target, 5),
        "at_equal_evaluations": round(float(np.median([c.best[n - 1] for c in runs[True]])), 5),
        "ask_ms": round(1e3 * statistics.median(s for c in runs[True] for s in c.ask_seconds), 2),
    }


def _ratio(a: float | None, b: float) -> float | None:
    """a / b; None where the run never got there."""
    return None if a is None else round(a / b, 3)


def small_budgets(name: str, *, n: int, batches: tuple[int, ...], seeds: int) -> dict[str, Any]:
    """A driver whose ask is slow: what it costs, and what it reaches by batch.

    Args:
        name: The driver.
        n: Evaluations of each run.
        batches: Synchronous batches, the first of them 1; 0 stands for 16 asynchronous workers.
        seeds: Runs of each.
    """
    landscape, settings = bowls(12), settings_of(name)
    first = len(landscape.references)
    asks: dict[str, float] = {}
    rng = np.random.default_rng(0)
    X = rng.random((n + 64, landscape.dim))
    for n_told in (n // 2, n):
        told = [
            complete(running(first + i, x), landscape.score(x)) for i, x in enumerate(X[:n_told])
        ]
        for n_pending in (0, 15, 63):
            driver = build(landscape.problem(0), settings)
            driver.tell(landscape.references)
            driver.tell(told)
            pending = [
                running(first + n_told + i, x) for i, x in enumerate(X[n_told:][:n_pending])
            ]
            start = time.process_time()
            driver.ask(1, first + n_told + n_pending, pending)
            asks[f"told {n_told}, pending {n_pending}"] = round(time.process_time() - start, 3)
    finals: dict[int, list[float]] = {}
    late: list[float] = []  # seconds per point of the second half of asynchronous runs
    for batch in batches:
        for seed in range(seeds):
            driver = build(landscape.problem(seed), settings)
            curve = simulate(landscape, driver, seed=seed, workers=batch or 16, batch=batch, n=n)
            finals.setdefault(batch, []).append(curve.best[-1])
            if not batch:
                late += curve.ask_seconds[len(curve.ask_seconds) // 2 :]
        print(f"  {name}: {_batch_name(batch)}: {np.round(finals[batch], 4).tolist()}", flush=True)
    one = finals[1]
    behind = float(np.median(one) - np.ptp(one))
    useful = 1
    for batch in sorted(b for b in batches if b):
        if np.median(finals[batch]) < behind:
            break
        useful = batch
    return {
        "ask_seconds": asks,
        "evaluations": n,
        "median_by_batch": {
            _batch_name(b): round(float(np.median(v)), 4) for b, v in finals.items()
        },
        "range_by_batch": {
            _batch_name(b): [round(min(v), 4), round(max(v), 4)] for b, v in finals.items()
        },
        "largest_useful_batch": useful,
        "seconds_per_point_asynchronous": round(float(np.mean(late)), 3),
        "workers_kept_busy_at_60_s": int(60 * MEAN_SECONDS / np.mean(late)),
    }


def _batch_name(batch: int) -> str:
    return f"batch {batch}" if batch else "16 asynchronous"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="one seed, 16 workers, 12 dimensions")
    parser.add_argument("--only", help="one driver")
    parser.add_argument("--seeds", type=int, default=5)
    o = parser.parse_args()
    names = [o.only] if o.only else driver_names()
    figures: dict[str, Any] = {}
    print(f"{'driver':14} {'W':>3} {'d':>3} {'busy':>6} {'(sync)':>6} {'evals':>6} {'time':>6}"
          f" {'target':>8} {'reached':>8} {'ask ms':>7}")  # fmt: skip
    for name in names:
        if name in {*SLOW, "grid"}:
            continue  # a grid is for three dimensions or fewer
        rows = {}
        for workers in (16,) if o.quick else (16, 64):
            for dim in (12,) if o.quick else (12, 24):
                row = compare(name, bowls(dim), workers, 1 if o.quick else o.seeds)
                rows[f"{workers} workers, d={dim}"] = row
                ratios = [
                    "never" if row[k] is None else f"{row[k]:.2f}"
                    for k in ("evaluations_ratio", "time_ratio")
                ]
                print(f"{name:14} {workers:3} {dim:3} {row['utilisation']:6.3f}"
                      f" {row['synchronous_utilisation']:6.3f} {ratios[0]:>6} {ratios[1]:>6}"
                      f" {row['target']:8.4f} {row['at_equal_evaluations']:8.4f}"
                      f" {row['ask_ms']:7.2f}", flush=True)  # fmt: skip
        figures[name] = summary(rows) | {"rows": rows}
    for name in SLOW:
        if name in names:
            sizes = {"n": 30, "batches": (1, 8, 0), "seeds": 1}
            if not o.quick:
                sizes = {"n": SLOW[name][0], "batches": (1, 4, 16, 32, 0), "seeds": SLOW[name][1]}
            figures[name] = small_budgets(name, **sizes)
            print(f"{name}: {json.dumps(figures[name])}", flush=True)
    print(json.dumps(figures))


def summary(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The worst of a driver's rows, and whether it holds what is promised."""
    evaluations = [r["evaluations_ratio"] for r in rows.values()]
    times = [r["time_ratio"] for r in rows.values()]
    worst = {
        "utilisation": min(r["utilisation"] for r in rows.values()),
        "evaluations_ratio": None if None in evaluations else max(evaluations),
        "time_ratio": None if None in times else max(times),
    }
    met = (
        worst["utilisation"] >= 0.95
        and (worst["evaluations_ratio"] or np.inf) <= 1.3
        and (worst["time_ratio"] or np.inf) < 1
    )
    return worst | {"met": bool(met)}


if __name__ == "__main__":
    main()
