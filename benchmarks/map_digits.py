"""MAP on digits: three experts with a known front, six experts for Nested MAP.

    python benchmarks/map_digits.py [--quick] [--seeds 5] [--first-seed 0] [--train]

The experts are perceptrons (``digits.py``), fine-tuned on some of the ten digits each from one
base, on the first 700 training digits; a merge is ``base + sum_n c_n tau_n`` with c in [0, 1] and
its scores are the accuracies on each expert's digits among the other 737. No driver is told a
reference point, and the space's start is its middle: every driver knows nothing, and every
evaluation counts, those of a predicted front too.

* Three experts: the hypervolume (down to 0) of what was measured, relative to that of a grid of
  21^3 = 9,261 merges. MAP is the driver with the settings of ``conf/optimizer``; the direct search
  is Optuna's multi-objective GPSampler; scrambled Sobol points are the floor.
* Six experts, 60 evaluations: Nested MAP against direct searches of all six coefficients: Sobol
  points, NSGA-II, and MAP itself. The good merges are close to the base, and Nested MAP measures
  the base by itself; so here the space's start is the base, for the direct searches' sake. No
  grid is possible: the hypervolume (of six accuracies, down to 0) and the best mean accuracy are
  as they are.

``--train`` makes the experts and the grid's scores anew (benchmarks/data/map_digits.npz,
committed). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import digits
import numpy as np
from landscapes import Landscape, build, complete, running, settings_of

from evomerge import pareto
from evomerge.geometry import Geometry
from evomerge.trial import Objective, Scores

DATA = Path(__file__).parent / "data" / "map_digits.npz"
GROUPS = {
    3: ((0, 1, 2, 3), (4, 5, 6), (7, 8, 9)),
    6: ((0, 1), (2, 3), (4, 5), (6, 7), (8,), (9,)),
}
"""Number of experts to the digits that each was trained on."""
N_TRAIN = 700  # training digits that the experts saw; the others score the merges
LEVELS = 21
BUDGETS = (30, 50)
NESTED_BUDGET = 60

Search = Callable[[Landscape, int, int], np.ndarray]
"""(landscape, seed, budget) -> (budget, m) scores in the order of evaluation."""


def train() -> None:
    """A base with ten steps on 100 digits, experts with thirty more on their own; the grid."""
    import torch

    X, y, _, _ = digits.load()

    def fit(start: np.ndarray, rows: np.ndarray, n_steps: int) -> np.ndarray:
        w = {
            k: torch.tensor(v.copy(), requires_grad=True)
            for k, v in digits.unflatten(start).items()
        }
        adam = torch.optim.Adam(w.values(), lr=0.003)
        inputs, labels = torch.tensor(X[rows]), torch.tensor(y[rows])
        for _ in range(n_steps):
            adam.zero_grad()
            out = torch.relu(inputs @ w["w1"] + w["b1"]) @ w["w2"] + w["b2"]
            torch.nn.functional.cross_entropy(out, labels).backward()
            adam.step()
        return np.concatenate([v.detach().numpy().ravel() for v in w.values()])

    noise = np.random.default_rng(0).standard_normal(digits.N_PARAMETERS)
    base = fit((0.01 * noise).astype(np.float32), np.arange(100), 10)
    found = {"base": base.astype(np.float16)}
    for n, groups in GROUPS.items():
        rows = [np.flatnonzero(np.isin(y[:N_TRAIN], group)) for group in groups]
        found[f"taus_{n}"] = np.array([fit(base, r, 30) - base for r in rows], dtype=np.float16)
    DATA.parent.mkdir(exist_ok=True)
    np.savez_compressed(DATA, **found)  # type: ignore[arg-type]
    merge.cache_clear()
    steps = np.linspace(0, 1, LEVELS)
    grid = np.array(np.meshgrid(steps, steps, steps, indexing="ij")).reshape(3, -1).T
    score = merge(3).score
    found["grid"] = np.array([list(score(c).values.values()) for c in grid], dtype=np.float32)
    np.savez_compressed(DATA, **found)  # type: ignore[arg-type]
    merge.cache_clear()


@functools.cache
def merge(n_experts: int) -> Landscape:
    """The merge of three or of six experts, one coefficient each; no references.

    With three, ``limit`` is what the grid reaches.
    """
    X, y, _, _ = digits.load()
    X, y = X[N_TRAIN:], y[N_TRAIN:]
    data = np.load(DATA)
    basis = np.vstack([data["base"], *data[f"taus_{n_experts}"]]).astype(np.float32)
    wanted = [np.isin(y, group) for group in GROUPS[n_experts]]
    objectives = tuple(
        Objective("digits " + "".join(map(str, group)), f"digits {i}", "acc")
        for i, group in enumerate(GROUPS[n_experts])
    )

    def score(c: np.ndarray) -> Scores:
        hits = digits.correct(np.array([1.0, *c], dtype=np.float32) @ basis, X, y)
        rows = {o.name: hits[w] for o, w in zip(objectives, wanted, strict=True)}
        return Scores(
            values={name: float(row.mean()) for name, row in rows.items()},
            stderr={},
            per_example={name: row.astype(np.float32) for name, row in rows.items()},
        )

    taus = basis[1:].astype(np.float64)
    geometry = Geometry(
        grams=(taus @ taus.T)[None],
        sizes=np.array([float(basis.shape[1])]),
        matrix=np.eye(n_experts),
        low=np.zeros(n_experts),
        high=np.ones(n_experts),
    )
    limit = {}
    if n_experts == 3 and "grid" in data:
        grid = data["grid"].astype(np.float64)
        limit = {"mean": float(grid.mean(axis=1).max()), "volume": volume(grid)}
    start = np.zeros(n_experts) if n_experts == 6 else None
    return Landscape(
        f"digits-{n_experts}",
        n_experts,
        objectives,
        score,
        start=start,
        geometry=geometry,
        limit=limit,
    )


def volume(F: np.ndarray) -> float:
    """Hypervolume of (n, m) accuracies, down to 0."""
    return pareto.hypervolume(F[pareto.non_dominated(F)], np.zeros(F.shape[1]))


def driver(name: str, **overrides: object) -> Search:
    """One of our drivers, with its configuration's settings, one worker, through ask and tell."""

    def search(landscape: Landscape, seed: int, budget: int) -> np.ndarray:
        optimizer = build(landscape.problem(seed), settings_of(name, overrides))
        F = []
        for number in range(budget):
            (x,) = optimizer.ask(1, number)
            trial = complete(running(number, x), landscape.score(x))
            optimizer.tell([trial])
            F.append(list(trial.scores.values.values()))
        return np.array(F)

    return search


def gp_sampler(landscape: Landscape, seed: int, budget: int) -> np.ndarray:
    """Optuna's GPSampler, used directly, with its own defaults."""
    import optuna

    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        sampler=optuna.samplers.GPSampler(seed=seed),
        directions=["maximize"] * len(landscape.objectives),
    )
    F = []
    for _ in range(budget):
        trial = study.ask()
        c = np.array([trial.suggest_float(f"c{i}", 0, 1) for i in range(landscape.dim)])
        F.append(list(landscape.score(c).values.values()))
        study.tell(trial, F[-1])
    return np.array(F)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="two seeds, no GPSampler")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0, help="100 for development")
    parser.add_argument("--only", default="", help="names of the searches, by comma")
    parser.add_argument("--train", action="store_true", help="make the experts and the grid anew")
    o = parser.parse_args()
    if o.train:
        train()
    seeds = range(o.first_seed, o.first_seed + (2 if o.quick else o.seeds))
    only = set(filter(None, o.only.split(",")))
    figures: dict[str, float] = {}

    three, truth = merge(3), merge(3).limit["volume"]
    print(f"3 experts: the grid's hypervolume is {truth:.3f}, its best mean accuracy "
          f"{three.limit['mean']:.3f}; relative to it, after {BUDGETS} evaluations:")  # fmt: skip
    searches: dict[str, Search] = {
        "map": driver("map_quadratic"),
        "map_plain": driver("map_quadratic", variant="plain"),
        "gp": gp_sampler,
        "sobol": driver("sobol"),
    }
    for name, search in searches.items():
        if (only and name not in only) or (o.quick and name == "gp"):
            continue
        start = time.perf_counter()
        runs = [search(three, seed, BUDGETS[-1]) for seed in seeds]
        seconds = (time.perf_counter() - start) / len(runs) / BUDGETS[-1]
        prefix = "hv_ratio" if name == "map" else name
        for n in BUDGETS:
            ratios = [volume(F[:n]) / truth for F in runs]
            means = [F[:n].mean(axis=1).max() for F in runs]
            figures[f"{prefix}_{n}_median"] = round(statistics.median(ratios), 4)
            figures[f"{prefix}_{n}_worst"] = round(min(ratios), 4)
            print(f"  {name} at {n}: {np.round(ratios, 3).tolist()}, best mean accuracy "
                  f"{statistics.median(means):.3f}")  # fmt: skip
        print(f"  {name}: {seconds:.2f} s per evaluation")

    print(f"6 experts, {NESTED_BUDGET} evaluations: hypervolume; best mean accuracy")
    searches = {
        "nested": driver("map_quadratic", variant="nested"),
        "direct_map": driver("map_quadratic"),
        "direct_nsga2": driver("nsga2"),
        "direct_sobol": driver("sobol"),
    }
    for name, search in searches.items():
        if only and name not in only:
            continue
        runs = [search(merge(6), seed, NESTED_BUDGET) for seed in seeds]
        volumes = [volume(F) for F in runs]
        means = [F.mean(axis=1).max() for F in runs]
        figures[f"{name}_{NESTED_BUDGET}"] = round(statistics.median(volumes), 4)
        figures[f"{name}_{NESTED_BUDGET}_mean"] = round(float(statistics.median(means)), 4)
        print(f"  {name}: {np.round(volumes, 3).tolist()}; {np.round(means, 3).tolist()}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
