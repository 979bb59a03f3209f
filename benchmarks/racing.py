"""What racing saves on the zoo, and what it loses.

    python benchmarks/racing.py [--folder DIR] [--seeds 5] [--trials 60] [--documents 200]
                                [--test 300] [--settings cautious bold] [--front]

For every seed one search without racing and one with each setting, whole searches: what is stopped
early changes what is proposed next. The runs stay in the folder, and what is there is not run
again; a candidate that the unraced search of the same seed scored too is read from it, document by
document. The objectives are the zoo's three log-likelihoods. ``--front``: NSGA-II and a front of
three objectives instead of CMA-ES and their mean.

Figures, per setting:

* ``documents_ratio``: documents asked on the search split, reference points included, over those
  of the unraced search (``of_search``: without the reference points, which are never raced);
* ``test_difference_se``: test score of the raced search's pick minus the unraced one's, mean over
  the seeds, in standard errors of that mean over the seeds, which hold the luck of two searches
  that take different ways; beside it the differences and, per seed, the paired standard error
  over documents. For a front, the hypervolume on the test documents of the members that the search
  documents made, its paired error bootstrapped; and ``hypervolume_ratio`` on the search documents;
* ``false_drop_rate``: of the candidates of the unraced searches that truly beat the best before
  them (entered the front), the share that racing would have stopped, their documents in 20 orders;
  ``winner_dropped``: the same of the eventual winners (members of the final front).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from evomerge import pareto
from evomerge.cli.build import Plan, build_plan
from evomerge.cli.compose import register_resolvers
from evomerge.compare import paired_mean
from evomerge.evaluators.blocks import order
from evomerge.executors.base import Job
from evomerge.executors.local import LocalExecutor
from evomerge.executors.worker import Worker, WorkerSpec
from evomerge.racing import Bar
from evomerge.resources import resource_folder
from evomerge.run import Run
from evomerge.scale import BASE
from evomerge.store import TrialStore, open_run
from evomerge.study import Study
from evomerge.trial import Objective, Scores, Trial, TrialState

N_ORDERS = 20
Weights = Mapping[str, np.ndarray]


def plan_of(o: argparse.Namespace, seed: int, racing: str, **splits: int) -> Plan:
    """The search of one seed, built from the configuration as `evomerge search` builds it."""
    register_resolvers()
    sizes = {"search": o.documents, "select": 0, "test": 0} | splits
    overrides = [
        f"seed={seed}",
        f"n_trials={o.trials}",
        f"racing={racing}",
        f"optimizer={'nsga2' if o.front else 'cma_es'}",
        "executor=local",
        "run_name=unused",
        *(f"evaluator.splits.{k}={v}" for k, v in sizes.items()),
    ]
    with initialize_config_dir(str(resource_folder("conf")), version_base="1.3"):
        config = compose("config", overrides=overrides)
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    return build_plan(plain)


def spec_of(plan: Plan, evaluator: Any = None) -> WorkerSpec:
    return WorkerSpec(plan.pool, evaluator or plan.evaluator, "cpu", "auto", threads=1)


class Remembering:
    """An evaluator that reads what another run has scored, and asks the model for the rest.

    Args:
        inner: The real one.
        known: Recipe id to complete scores on the search documents.
        weights: Of the documents.
    """

    def __init__(self, inner: Any, known: Mapping[str, Scores], weights: Weights) -> None:
        self._inner, self._known, self._weights = inner, known, weights
        self.objectives = inner.objectives
        self.prepare, self.documents = inner.prepare, inner.documents
        self.fingerprint = inner.fingerprint

    def evaluate(self, model: Any, recipe: Any, split: Any, bar: Bar | None = None) -> Scores:
        scores = self._known.get(recipe.id)
        if scores is None:
            return self._inner.evaluate(model, recipe, split, bar)
        return replay(scores, bar, self.objectives, self._weights) if bar else scores


def replay(
    scores: Scores, bar: Bar, objectives: tuple[Objective, ...], weights: Weights, seed: int = 0
) -> Scores:
    """What racing makes of complete scores."""
    guiding = [o for o in objectives if o.guides]
    rates, places = {}, {}
    for o in guiding:
        v = np.asarray(scores.per_example[o.name], dtype=np.float64)
        w = weights.get(o.name, np.ones(len(v)))
        rates[o.name] = (v - scores.values[o.name] * (1 - w)) / w
        places[o.name] = order(o.task, len(v), seed)
    for share in bar.shares[:-1]:
        seen = {}
        for name, rate in rates.items():
            asked = places[name][: max(1, math.ceil(len(rate) * share))]
            seen[name] = np.full(len(rate), np.nan)
            seen[name][asked] = rate[asked]
        verdict = bar.verdict(seen, weights)
        if verdict.stop:
            examples = {
                n: (verdict.values[n] + weights.get(n, 1.0) * (s - verdict.values[n])).astype("f4")
                for n, s in seen.items()
            }
            n = sum(np.isfinite(s).sum() for s in seen.values())  # one objective per task
            return Scores(verdict.values, verdict.stderr, examples, asked=int(n))
    return scores


def search(plan: Plan, folder: Path, evaluator: Any) -> Run:
    """One search to its end; a folder that has one is only read."""
    plan.meta["n_trials"] = plan.config["n_trials"]
    store = TrialStore(folder, plan.evaluator.objectives, plan.meta, plan.axes)
    executor = LocalExecutor(spec_of(plan, evaluator), threads=1)
    have = sum(t.kind == "search" and t.finished for t in store.load())
    try:
        if have < plan.config["n_trials"]:
            Study(
                space=plan.space,
                optimizer=plan.optimizer,
                executor=executor,
                store=store,
                references=plan.references,
                n_trials=plan.config["n_trials"],
                racing=plan.racing,
                view=lambda trials: plan.view(folder, trials),
            ).run()
    finally:
        store.close()
        executor.close()
    return open_run(folder)


def searched(run: Run, n: int) -> list[Trial]:
    """References and the first n search trials of the search split, in told order."""
    last = sum(t.kind == "reference" for t in run.trials) + n
    return [t for t in run.trials if t.split == "search" and t.number < last]


def winner(run: Run, trials: list[Trial]) -> Trial:
    """The best COMPLETE search trial by its search score."""
    scale = run.scale()
    complete = [t for t in trials if t.kind == "search" and t.state is TrialState.COMPLETE]
    return max(complete, key=lambda t: scale.scalar(t.scores.values))


def documents(trials: list[Trial]) -> tuple[int, int]:
    """Documents asked: of all trials, and of search trials."""

    def asked(t: Trial) -> int:
        if t.scores is None or t.copied_from is not None:
            return 0
        full = sum(len(v) for v in t.scores.per_example.values() if v is not None)
        return full if t.scores.asked is None else t.scores.asked

    return sum(map(asked, trials)), sum(asked(t) for t in trials if t.kind == "search")


def false_drops(
    plan: Plan, run: Run, trials: list[Trial], weights: Weights
) -> tuple[list[bool], list[bool]]:
    """Whether each candidate that truly clears the bar is stopped; and the eventual winners."""
    names = [o.name for o in run.searched]
    last = front_of(trials, names) if plan.optimizer.pareto else [winner(run, trials)]
    winners = {t.number for t in last}
    drops: list[bool] = []
    lost: list[bool] = []
    for seed in range(N_ORDERS):
        told: list[Trial] = []
        for t in trials:
            bar = plan.racing.bar(told) if plan.racing and t.kind == "search" else None
            scores = replay(t.scores, bar, run.objectives, weights, seed) if bar else t.scores
            stopped = scores.asked is not None
            if bar is not None:
                known = [x for x in told if x.state is TrialState.COMPLETE]
                if clears(run, t, known, pareto=plan.optimizer.pareto):
                    drops.append(stopped)
                if t.number in winners:
                    lost.append(stopped)
            state = TrialState.PRUNED if stopped else TrialState.COMPLETE
            told.append(dataclasses.replace(t, state=state, scores=scores))
    return drops, lost


def clears(run: Run, trial: Trial, known: list[Trial], *, pareto: bool) -> bool:
    """Whether a candidate beats all that is known, or none of it dominates the candidate."""
    names, scale = [o.name for o in run.searched], run.scale()
    if not pareto:
        return scale.scalar(trial.scores.values) > max(
            scale.scalar(t.scores.values) for t in known
        )
    return not any(all(trial.scores.values[n] <= t.scores.values[n] for n in names) for t in known)


def front_of(trials: list[Trial], names: list[str]) -> list[Trial]:
    complete = [t for t in trials if t.state is TrialState.COMPLETE]
    F = np.array([[t.scores.values[n] for n in names] for t in complete])
    return [t for t, keep in zip(complete, pareto.non_dominated(F), strict=True) if keep]


def hypervolume(trials: list[Trial], scale: Any) -> float:
    """Of the front on the search documents, in normalised scores, above the base."""
    rows = [list(scale.normalise(t.scores.values).values()) for t in front_of(trials, scale.names)]
    return pareto.hypervolume(np.array(rows), np.zeros(len(scale.names)))


def difference_on_test(
    raced: list[Trial], plain: list[Trial], base: Trial, scale: Any
) -> tuple[float, float]:
    """Hypervolume of a front minus another's, above the base, on the same test documents.

    Returns:
        The difference, and its standard deviation over 200 bootstrap draws of the documents.
    """
    rng = np.random.default_rng(0)
    sizes = [len(base.scores.per_example[n]) for n in scale.names]
    draws = [[np.arange(n) for n in sizes]]
    draws += [[rng.integers(n, size=n) for n in sizes] for _ in range(200)]

    def volume(front: list[Trial], drawn: list[np.ndarray]) -> float:
        columns = []
        for name, ids in zip(scale.names, drawn, strict=True):
            means = [t.scores.per_example[name][ids].mean(dtype=float) for t in (base, *front)]
            columns.append(np.array(means[1:]) - means[0])
        return pareto.hypervolume(np.array(columns).T / scale.unit, np.zeros(len(scale.names)))

    found = [volume(raced, drawn) - volume(plain, drawn) for drawn in draws]
    return found[0], float(np.std(found[1:]))


def on_test(plan: Plan, worker: Worker, folder: Path, t: Trial) -> Trial:
    """A pick on the test documents; kept in the folder."""
    file = folder / f"test-{t.number}.npz"
    names = [x.name for x in plan.evaluator.objectives if x.search]
    if not file.exists():
        done = worker.run(Job(Trial(t.number, "final", t.x, t.recipe, split="test")))
        assert done.scores is not None, done.error
        np.savez(file, **{n: done.scores.per_example[n] for n in names})
    with np.load(file) as data:
        rows = {n: data[n] for n in names}
    values = {n: float(v.astype(np.float64).mean()) for n, v in rows.items()}
    scores = Scores(values, dict.fromkeys(names, math.nan), rows)
    return dataclasses.replace(
        t, kind="final", split="test", state=TrialState.COMPLETE, scores=scores
    )


def document_weights(evaluator: Any) -> Weights:
    """Bytes of each search document, of mean 1, read off the tasks' own files."""
    folder = Path(evaluator._plans["zoo_code_ll"].source.path).parent
    found = {}
    for x in evaluator.objectives:
        if x.search:
            texts = json.loads((folder / f"{x.task}.json").read_text(encoding="utf-8"))
            ids = evaluator.samples("search")[x.task]
            sizes = np.array([len(texts[i]["text"].encode()) for i in ids], dtype=np.float64)
            found[x.name] = sizes / sizes.mean()
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--test", type=int, default=300, help="test documents per task")
    parser.add_argument("--settings", nargs="+", default=["cautious", "bold"])
    parser.add_argument("--front", action="store_true")
    o = parser.parse_args()
    root = o.folder or Path(tempfile.mkdtemp(prefix="racing-"))
    print(f"runs: {root}", flush=True)
    kind = "front" if o.front else "mean"
    per_seed: dict[str, list[dict[str, Any]]] = {s: [] for s in o.settings}
    drops: dict[str, list[bool]] = {s: [] for s in o.settings}
    lost: dict[str, list[bool]] = {s: [] for s in o.settings}
    examiner = plan_of(o, 0, "off", test=o.test)
    worker = Worker(spec_of(examiner))
    for seed in range(o.seeds):
        base = plan_of(o, seed, "off")
        folder = root / f"{kind}-off-{seed}"
        whole = search(base, folder, base.evaluator)
        plain = searched(whole, o.trials)
        scale = whole.scale()
        weights = document_weights(base.evaluator)
        known = {t.recipe.id: t.scores for t in plain if t.scores and t.copied_from is None}

        def tested(run: Run, trials: list[Trial], plan: Plan, folder: Path) -> list[Trial]:
            """What a search found, on the test documents: its front, or its pick."""
            names = [x.name for x in run.searched]
            found = front_of(trials, names) if o.front else [winner(run, trials)]
            return [on_test(plan, worker, folder, t) for t in found]

        rivals = tested(whole, plain, base, folder)
        for setting in o.settings:
            plan = plan_of(o, seed, setting)
            folder = root / f"{kind}-{setting}-{seed}"
            run = search(plan, folder, Remembering(plan.evaluator, known, weights))
            trials = searched(run, o.trials)
            (asked, own), (full, full_own) = documents(trials), documents(plain)
            row: dict[str, Any] = {
                "seed": seed,
                "documents_ratio": asked / full,
                "of_search": own / full_own,
                "pruned": sum(t.state is TrialState.PRUNED for t in trials),
            }
            picks = tested(run, trials, plan, folder)
            if o.front:
                volumes = [hypervolume(found, scale) for found in (trials, plain)]
                row["hypervolume_ratio"] = volumes[0] / volumes[1]
                start = next(t for t in plain if t.label == BASE)
                start = on_test(base, worker, root / f"{kind}-off-{seed}", start)
                difference, stderr = difference_on_test(picks, rivals, start, scale)
            else:
                d = paired_mean(picks[0], rivals[0], scale)
                difference, stderr = d.mean, d.stderr
            row |= {"difference": difference, "paired_stderr": stderr}
            found, last = false_drops(plan, whole, plain, weights)
            drops[setting] += found
            lost[setting] += last
            per_seed[setting].append(row)
            print(setting, json.dumps(rounded(row)), flush=True)
    figures = {s: summary(per_seed[s], drops[s], lost[s]) for s in o.settings}
    print(json.dumps(rounded({"front": o.front} | figures)))


def summary(rows: list[dict[str, Any]], drops: list[bool], lost: list[bool]) -> dict[str, Any]:
    """The figures of one setting over all seeds."""
    found: dict[str, Any] = {
        "documents_ratio": float(np.mean([r["documents_ratio"] for r in rows])),
        "of_search": float(np.mean([r["of_search"] for r in rows])),
        "false_drop_rate": float(np.mean(drops)) if drops else 0.0,
        "candidates": len(drops),
        "winner_dropped": float(np.mean(lost)) if lost else 0.0,
    }
    if "hypervolume_ratio" in rows[0]:
        found["hypervolume_ratio"] = float(np.mean([r["hypervolume_ratio"] for r in rows]))
    d = np.array([r["difference"] for r in rows])
    error = float(d.std(ddof=1)) / math.sqrt(len(d)) if len(d) > 1 else rows[0]["paired_stderr"]
    found |= {"difference": float(d.mean()), "stderr": error}
    found["test_difference_se"] = float(d.mean()) / error if error else 0.0
    return found | {"rows": rows}


def rounded(data: Any) -> Any:
    if isinstance(data, float):
        return round(data, 4)
    if isinstance(data, dict):
        return {k: rounded(v) for k, v in data.items()}
    return [rounded(v) for v in data] if isinstance(data, list) else data


if __name__ == "__main__":
    main()
