"""What a driver gains, and what it loses, by proposing while the reference points are scored.

    python benchmarks/beside_references.py [--optimizer NAME] [--workers N] [--seeds A-B]

Evaluations are simulated on a virtual clock: log-normal times (median 1, sigma 0.5), one in ten
five times as long; the problem is ``landscapes.bowls(24)``, without noise. Two runs of each seed:
one asks the driver only once all reference points are told, the other at once. The figure is what
the search has reached (best mean, or hypervolume for a Pareto driver), reference points included.

Figures, per number of evaluations g W with W workers: the difference of the two, beside minus
waiting, mean over the seeds with its standard error; ``trials``: after as many trials, ``time``:
when the waiting run has had that many.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import json

import numpy as np
from landscapes import Landscape, Progress, bowls, build, complete, running, settings_of

from evomerge.optimizers.base import Optimizer
from evomerge.trial import Trial, TrialState

GENERATIONS = (2, 4, 8, 20)
MORE = 4
"""So many W more are run, for what the run that does not wait has at the same time."""


def duration(seed: int, number: int) -> float:
    """Virtual time of one evaluation; the same in both runs."""
    rng = np.random.default_rng((seed, number, 99))
    seconds = float(np.exp(0.5 * rng.standard_normal()))
    return seconds * (5 if rng.random() < 0.1 else 1)


def search(
    landscape: Landscape, driver: Optimizer, *, seed: int, workers: int, n: int, waits: bool
) -> list[tuple[float, int, float]]:
    """(time, search trials told, reached) after every told trial."""
    progress, curve = Progress(landscape), []
    pending: dict[int, Trial] = {}
    queue: list[tuple[float, int]] = []
    for t in landscape.references:
        pending[t.number] = dataclasses.replace(t, state=TrialState.RUNNING, scores=None)
        heapq.heappush(queue, (duration(seed, t.number), t.number))
    first = number = len(landscape.references)
    now, told = 0.0, 0
    while told < n:
        wanted = min(workers - len(pending), first + n - number)
        scored = all(t.kind != "reference" for t in pending.values())
        if wanted > 0 and (scored or not waits):
            for x in driver.ask(wanted, number, sorted(pending.values(), key=lambda t: t.number)):
                pending[number] = running(number, x)
                heapq.heappush(queue, (now + duration(seed, number), number))
                number += 1
        now, which = heapq.heappop(queue)
        trial = pending.pop(which)
        if trial.kind == "reference":
            trial = landscape.references[which]
        else:
            trial = complete(trial, landscape.score(np.asarray(trial.x)))
            told += 1
        driver.tell([trial])
        progress.take(trial)
        curve.append((now, told, progress.volume if driver.pareto else progress.mean))
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimizer", default="cma_es")
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--seeds", default="22-46", help="from-to, the latter left out")
    options = parser.parse_args()
    landscape, workers = bowls(24), options.workers
    found: dict[str, list[float]] = {}
    for seed in range(*map(int, options.seeds.split("-"))):
        waiting, beside = (
            search(
                landscape,
                build(landscape.problem(seed), settings_of(options.optimizer)),
                seed=seed,
                workers=workers,
                n=(max(GENERATIONS) + MORE) * workers,
                waits=waits,
            )
            for waits in (True, False)
        )
        for g in GENERATIONS:
            at, _, reached = next(c for c in waiting if c[1] >= g * workers)
            same_trials = [c[2] for c in beside if c[1] <= g * workers][-1]
            same_time = [c[2] for c in beside if c[0] <= at][-1]
            found.setdefault(f"trials_{g}W", []).append(same_trials - reached)
            found.setdefault(f"time_{g}W", []).append(same_time - reached)
    figures = {
        k: [round(float(np.mean(v)), 4), round(float(np.std(v, ddof=1)) / len(v) ** 0.5, 4)]
        for k, v in found.items()
    }
    for name, (mean, error) in figures.items():
        print(f"{name:12} {mean:+.4f} ± {error:.4f}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
