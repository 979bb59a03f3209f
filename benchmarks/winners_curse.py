"""How much of a search's gain is luck, and how well `evomerge.luck` knows it beforehand.

    python benchmarks/winners_curse.py --out OUT [--seeds 10] [--documents 30] [--trials 40]

Searches the zoo once per seed, each on its own few documents per task; every winner is then scored
on all other documents of the three tasks. The table shows its gain over the zoo's best single
model on the documents of the search, the same without the luck that the report expects, and the
gain on the others. (The report's rival is the best single model on the search documents, which
has luck of its own and makes the merge look worse; here it is the same everywhere.)

The second table isolates the choice: of each run's documents a few are drawn, the best of its
trials is chosen on those and looked at on the rest, again and again.

OUT keeps the run folders: the same command continues, and is quick once all is scored. CPU only;
half a minute per seed on one free core.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np

from evomerge.cli.build import build_plan
from evomerge.cli.search import register_resolvers
from evomerge.compare import paired_mean, scale_of
from evomerge.executors.base import Job
from evomerge.executors.local import LocalExecutor
from evomerge.executors.worker import Worker, WorkerSpec
from evomerge.luck import luck
from evomerge.run import Run
from evomerge.scale import EXPERT
from evomerge.store import TrialStore, open_run
from evomerge.study import Study
from evomerge.trial import Scores, Trial

TASKS = ("code", "prose", "math")
RIVAL = EXPERT + "prose"
"""The best single model on all documents."""


def configuration(
    seed: int, documents: int | None, trials: int, optimizer: str = "cma_es"
) -> dict:
    """The zoo with this many search documents per task and no others."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from evomerge.resources import resource_folder

    register_resolvers()
    with initialize_config_dir(str(resource_folder("conf")), version_base="1.3"):
        chosen = [f"optimizer={optimizer}", f"seed={seed}", f"n_trials={trials}"]
        config = compose("config", ["executor=local", *chosen])
    OmegaConf.set_struct(config, value=False)  # the run folder is ours
    for key in ("run_dir", "run_name"):
        del config[key]
    plain = OmegaConf.to_container(config, resolve=True)
    plain["objective"] = {name: plain["objective"][name] for name in TASKS}
    plain["evaluator"]["splits"] = {"search": documents, "select": 0, "test": 0}
    plain["evaluator"]["split_seed"] = seed
    return plain


def search(folder: Path, seed: int, options: argparse.Namespace) -> tuple[Run, dict]:
    """One search; and which documents it saw."""
    trials = options.trials
    plan = build_plan(configuration(seed, options.documents, trials, options.optimizer))
    seen = plan.evaluator.samples("search")
    store = TrialStore(folder, plan.evaluator.objectives, plan.meta, plan.axes)
    executor = LocalExecutor(WorkerSpec(plan.pool, plan.evaluator, "cpu"), threads=1)
    try:
        done = sum(t.kind == "search" for t in store.load())
        if done < trials:
            Study(
                space=plan.space, optimizer=plan.optimizer, executor=executor, store=store,
                references=plan.references, n_trials=trials,
                view=lambda told: plan.view(folder, told),
            ).run()  # fmt: skip
    finally:
        executor.close()
        store.close()
    return open_run(folder), seen


class Everywhere:
    """Scores of a recipe on every document of the tasks, kept in a file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._worker: Worker | None = None
        self.ids: dict[str, list[int]] = {}

    def score(self, trial: Trial) -> dict[str, np.ndarray]:
        """Objective to signed values per document, in the task's order."""
        path = self._folder / f"{trial.recipe.id[:24]}.npz"
        if not path.exists():
            if self._worker is None:
                plan = build_plan(configuration(0, None, 1))
                self._worker = Worker(WorkerSpec(plan.pool, plan.evaluator, "cpu", threads=1))
            done = self._worker.run(Job(dataclasses.replace(trial, scores=None)))
            assert done.scores is not None, done.error
            np.savez(path, **done.scores.per_example)
        with np.load(path) as data:
            return dict(data)


def elsewhere(trial: Trial, rows: dict[str, np.ndarray], seen: dict) -> Trial:
    """The trial as scored on the documents that a search did not see."""
    kept = {}
    for name, values in rows.items():
        mask = np.ones(len(values), bool)
        mask[seen[f"zoo_{name}_ll"]] = False
        kept[name] = values[mask]
    means = {n: float(v.mean()) for n, v in kept.items()}
    errors = {n: float(v.std(ddof=1) / len(v) ** 0.5) for n, v in kept.items()}
    return dataclasses.replace(trial, split="test", scores=Scores(means, errors, kept))


def one(folder: Path, everywhere: Everywhere, seed: int, options: argparse.Namespace) -> list:
    """Gains of one seed: on the search, corrected, elsewhere."""
    run, seen = search(folder / f"seed-{seed}", seed, options)
    scale, found = scale_of(run, "search"), luck(run)
    pair = (found.trial, next(t for t in run.trials if t.label == RIVAL))
    gain = paired_mean(*pair, scale).mean
    others = [elsewhere(t, everywhere.score(t), seen) for t in pair]
    return [gain, gain - found.luck, paired_mean(*others, scale).mean]


def on(run: Run, kept: dict[str, np.ndarray]) -> Run:
    """The run as if the search had had these documents only."""
    trials = []
    for trial in run.complete("search"):
        rows = {n: trial.scores.per_example[n][kept[n]] for n in kept}
        values = {n: float(v.mean()) for n, v in rows.items()}
        errors = {n: float(v.std(ddof=1) / len(v) ** 0.5) for n, v in rows.items()}
        trials.append(dataclasses.replace(trial, scores=Scores(values, errors, rows)))
    return dataclasses.replace(run, trials=tuple(trials))


def choices(runs: list[Run], n: int, draws: int) -> np.ndarray:
    """(runs, 3): gain on the n documents per task chosen on, corrected, on the others."""
    found = []
    for run in runs:
        rng = np.random.default_rng(n)
        rival = next(t for t in run.trials if t.label == RIVAL)
        gains = []
        for _ in range(draws):
            lengths = {name: len(run.trials[0].scores.per_example[name]) for name in TASKS}
            order = {name: rng.permutation(length) for name, length in lengths.items()}
            few = on(run, {name: ids[:n] for name, ids in order.items()})
            rest = on(run, {name: ids[n:] for name, ids in order.items()})
            seen = luck(few)
            scale = scale_of(run, "search")
            here, there = (
                paired_mean(by[seen.trial.number], by[rival.number], scale).mean
                for by in ({t.number: t for t in r.trials} for r in (few, rest))
            )
            gains.append([here, here - seen.luck, there])
        found.append(np.mean(gains, axis=0))
    return np.array(found)


def row(name: str, cells: np.ndarray) -> str:
    """The mean over the runs with its standard error."""
    gaps = np.column_stack([cells, cells[:, 0] - cells[:, 2], cells[:, 1] - cells[:, 2]])
    mean, error = gaps.mean(axis=0), gaps.std(axis=0, ddof=1) / len(gaps) ** 0.5
    shown = " | ".join(f"{m:+.3f} ± {e:.3f}" for m, e in zip(mean, error, strict=True))
    return f"| {name} | {shown} |"


def gap(cells: np.ndarray) -> dict[str, float]:
    """Mean gap between what was seen and what is elsewhere, raw and corrected."""
    search, corrected, elsewhere = cells.mean(axis=0)
    return {"raw": round(search - elsewhere, 4), "corrected": round(corrected - elsewhere, 4)}


def main() -> None:
    """Runs it and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--optimizer", default="cma_es")
    parser.add_argument("--documents", type=int, default=30)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--draws", type=int, default=40)
    options = parser.parse_args()
    (options.out / "everywhere").mkdir(parents=True, exist_ok=True)
    everywhere = Everywhere(options.out / "everywhere")
    head = "| search | corrected | elsewhere | raw gap | corrected gap |"
    print(f"| seed {head}\n|---|---|---|---|---|---|")
    rows = []
    for seed in range(options.first, options.first + options.seeds):
        gains = one(options.out, everywhere, seed, options)
        rows.append(gains)
        shown = [*gains, gains[0] - gains[2], gains[1] - gains[2]]
        print(f"| {seed} | " + " | ".join(f"{v:+.3f}" for v in shown) + " |", flush=True)
    print(row("mean", np.array(rows)))
    figures = {"searches": gap(np.array(rows))}
    runs = [
        open_run(options.out / f"seed-{seed}")
        for seed in range(options.first, options.first + options.seeds)
    ]
    print(f"\n| documents per task {head}\n|---|---|---|---|---|---|")
    for n in (3, 5, 10, 15):
        cells = choices(runs, n, options.draws)
        print(row(str(n), cells), flush=True)
        figures[f"choices_of_{n}"] = gap(cells)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
