"""How much of a search's gain is luck, and how well `evomerge.luck` knows it beforehand.

    python benchmarks/winners_curse.py --out OUT [--tasks choice] [--documents 20] [--trials 60]

Whole searches of the zoo, one per seed, each on its own few documents per task; the merge that the
search would pick is then scored on all other documents of the tasks. Stated before the runs:

* gap = score of the winner on the search documents - its score on the others (mean normalised
  score, in the units of the search), which choosing makes positive;
* corrected gap = that minus `luck(run).flattery`, what the report takes off for choosing;
* both averaged over the seeds, with standard errors over them. The correction works where the
  corrected gap is smaller than the gap and within two standard errors of 0.

Documents differ in hardness, which is noise here: it is taken out with the reference models, which
no search chose. The winner's score per document is regressed on theirs on the *other* documents,
and the gap is that of the residuals (control variates; unbiased, since the references' own
expected gap is 0). The second table is what the report prints, without any such help: the lead
over the single model that was best on the search documents, expected and found.

OUT keeps the run folders: the same command continues, and is quick once all is scored. CPU only;
half a minute to a minute per seed on one free core.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np

from evomerge.cli.build import build_plan
from evomerge.cli.compose import register_resolvers
from evomerge.compare import paired_mean, scale_of
from evomerge.executors.base import Job
from evomerge.executors.local import LocalExecutor
from evomerge.executors.worker import Worker, WorkerSpec
from evomerge.luck import luck
from evomerge.run import Run
from evomerge.store import TrialStore, open_run
from evomerge.study import Study
from evomerge.trial import Scores, Trial

TASKS = {
    "likelihood": {"code": "zoo_code_ll", "prose": "zoo_prose_ll", "math": "zoo_math_ll"},
    "choice": {"code_choice": "zoo_code_choice", "prose_choice": "zoo_prose_choice"},
}
"""Objectives of the zoo and their tasks: bits per byte, or hits and misses."""
Rows = dict[str, np.ndarray]
"""Objective to signed scores per document."""


def configuration(seed: int, documents: int | None, options: argparse.Namespace) -> dict:
    """The zoo with this many search documents per task (None: all) and no others."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from evomerge.resources import resource_folder

    register_resolvers()
    with initialize_config_dir(str(resource_folder("conf")), version_base="1.3"):
        chosen = [f"optimizer={options.optimizer}", f"seed={seed}", f"n_trials={options.trials}"]
        config = compose("config", ["executor=local", *chosen])
    OmegaConf.set_struct(config, value=False)  # the run folder is ours
    for key in ("run_dir", "run_name"):
        del config[key]
    plain = OmegaConf.to_container(config, resolve=True)
    known = plain["objective"]
    plain["objective"] = {n: {**known[n], "search": True} for n in TASKS[options.tasks]}
    plain["evaluator"]["splits"] = {"search": documents, "select": 0, "test": 0}
    plain["evaluator"]["split_seed"] = seed
    return plain


def search(folder: Path, seed: int, options: argparse.Namespace) -> tuple[Run, dict]:
    """One search; and which documents it saw."""
    plan = build_plan(configuration(seed, options.documents, options))
    seen = plan.evaluator.samples("search")
    store = TrialStore(folder, plan.evaluator.objectives, plan.meta, plan.axes)
    executor = LocalExecutor(WorkerSpec(plan.pool, plan.evaluator, "cpu"), threads=1)
    try:
        done = sum(t.kind == "search" for t in store.load())
        if done < options.trials:
            Study(
                space=plan.space, optimizer=plan.optimizer, executor=executor, store=store,
                references=plan.references, n_trials=options.trials,
                view=lambda told: plan.view(folder, told),
            ).run()  # fmt: skip
    finally:
        executor.close()
        store.close()
    return open_run(folder), seen


class Everywhere:
    """Scores of a recipe on every document of the tasks, kept in a file."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._folder = options.out / "everywhere"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._options = options
        self._worker: Worker | None = None

    def score(self, trial: Trial) -> Rows:
        """Objective to signed values per document, in the task's order."""
        path = self._folder / f"{self._options.tasks}-{trial.recipe.id[:24]}.npz"
        if not path.exists():
            if self._worker is None:
                plan = build_plan(configuration(0, None, self._options))
                self._worker = Worker(WorkerSpec(plan.pool, plan.evaluator, "cpu", threads=1))
            done = self._worker.run(Job(dataclasses.replace(trial, scores=None)))
            assert done.scores is not None, done.error
            np.savez(path, **done.scores.per_example)
        with np.load(path) as data:
            return dict(data)


def adjusted_gap(winner: Rows, references: list[Rows], here: dict[str, np.ndarray]) -> Rows:
    """Objective to the winner's mean on the documents ``here`` minus that on all others.

    What the reference models explain of it is taken out, by a regression on the others.
    """
    found = {}
    for name, values in winner.items():
        X = np.column_stack([np.ones(len(values)), *(r[name] for r in references)])
        inside = here[name]
        residual = values - X @ np.linalg.lstsq(X[~inside], values[~inside], rcond=None)[0]
        found[name] = residual[inside].mean() - residual[~inside].mean()
    return found


def on(trial: Trial, rows: Rows, kept: dict[str, np.ndarray]) -> Trial:
    """The trial as scored on some documents of every task."""
    chosen = {n: v[kept[n]] for n, v in rows.items()}
    means = {n: float(v.mean()) for n, v in chosen.items()}
    errors = {n: float(v.std(ddof=1) / len(v) ** 0.5) for n, v in chosen.items()}
    return dataclasses.replace(trial, split="test", scores=Scores(means, errors, chosen))


def one(seed: int, everywhere: Everywhere, options: argparse.Namespace) -> list[float]:
    """One seed: gap, corrected gap; lead on the search, as expected elsewhere, and found there."""
    run, seen = search(options.out / f"seed-{seed}", seed, options)
    scale, found = scale_of(run, "search"), luck(run)
    here = {}
    for name, task in TASKS[options.tasks].items():
        here[name] = np.zeros(len(everywhere.score(found.trial)[name]), bool)
        here[name][seen[task]] = True
    references = [everywhere.score(t) for t in run.trials if t.kind == "reference"]
    gaps = adjusted_gap(everywhere.score(found.trial), references, here)
    parts = zip(scale.names, scale.weights, scale.unit, strict=True)
    gap = float(sum(w / unit * gaps[name] for name, w, unit in parts))
    others = {n: ~mask for n, mask in here.items()}
    pair = [on(t, everywhere.score(t), others) for t in (found.trial, found.rival)]
    lead = paired_mean(*pair, scale).mean
    return [gap, gap - found.flattery, found.gain, found.expected, lead]


def mean(column: np.ndarray) -> str:
    """A mean over the seeds with its standard error."""
    return f"{column.mean():+.3f} ± {column.std(ddof=1) / len(column) ** 0.5:.3f}"


def main() -> None:
    """Runs it and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", choices=list(TASKS), default="choice")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--documents", type=int, default=20)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--optimizer", default="cma_es")
    options = parser.parse_args()
    everywhere = Everywhere(options)
    print("| seed | gap | corrected | lead on the search | expected | found |")
    print("|---|---|---|---|---|---|")
    rows = []
    for seed in range(options.first, options.first + options.seeds):
        rows.append(one(seed, everywhere, options))
        print(f"| {seed} | " + " | ".join(f"{v:+.3f}" for v in rows[-1]) + " |", flush=True)
    cells = np.array(rows)
    print("| mean | " + " | ".join(mean(c) for c in cells.T) + " |")
    left = {"raw": cells[:, 2] - cells[:, 4], "expected": cells[:, 3] - cells[:, 4]}
    print("lead too large by: " + ", ".join(f"{k} {mean(v)}" for k, v in left.items()))
    names = ("gap", "corrected_gap", "lead_search", "lead_expected", "lead_elsewhere")
    print(json.dumps({n: round(float(v), 4) for n, v in zip(names, cells.mean(0), strict=True)}))


if __name__ == "__main__":
    main()
