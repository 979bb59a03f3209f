"""Real candidates of the zoo on real documents: the matrices that `estimating.py` works with.

A stand-in for a search: the usual reference points, then candidates by turns uniformly random in
the space (blockwise task arithmetic, 12 coefficients) and close to the best one found so far. All
are merged and scored by the project's own worker, on the same documents. The answers are kept in
the cache folder (`estimating/answers-<hash>.npz`, keyed by models, tasks and settings) and written
after every candidate, so that a stopped run continues; remove the file to measure again. The
zoo itself is built on first use. A candidate takes about ten seconds on one core.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evomerge.cli.build import Plan
from evomerge.scale import Scale
from evomerge.trial import Objective, Scores, Trial, TrialState

Array = npt.NDArray[np.float64]

VERSION = 1
"""Raise it when this file draws or scores something else."""
OBJECTIVES = {
    "code_choice": {"task": "zoo_code_choice", "metric": "acc"},
    "prose_choice": {"task": "zoo_prose_choice", "metric": "acc"},
    "math_exact": {"task": "zoo_math_exact", "metric": "exact_match"},
    "math": {"task": "zoo_math_ll", "metric": "bits_per_byte", "direction": "minimize"},
}
SPREAD = 0.1
"""Standard deviation around the best candidate, in shares of an axis."""


@dataclasses.dataclass(frozen=True)
class Answers:
    """What every candidate scored on every document, in the order of the search.

    Attributes:
        values: Objective to a (T, n) matrix of signed per-document scores.
        weights: Objective to the (n,) weights of its documents where the metric is a ratio (bytes,
            for bits per byte), None where it is a mean.
        near: (T,) whether a candidate was drawn close to the best one.
    """

    values: dict[str, Array]
    weights: dict[str, Array | None]
    near: npt.NDArray[np.bool_]

    def partial(self, objective: str, trial: int, seen: npt.NDArray[np.int64]) -> Array:
        """(n,) values as an evaluation of only these documents would have given them, else NaN.

        Bits per byte are linearised around the candidate's own rate
        (`evomerge/evaluators/metrics.py`), which a partial evaluation knows from its documents
        only: the stored values would give the answer away.
        """
        row, weights = self.values[objective][trial], self.weights[objective]
        values = np.full(len(row), np.nan)
        if weights is None:
            values[seen] = row[seen]
            return values
        mean = weights.mean()
        loss = (row - row.mean() * (1 - weights / mean)) * mean
        rate = loss[seen].sum() / weights[seen].sum()
        values[seen] = rate + (loss[seen] - rate * weights[seen]) / weights[seen].mean()
        return values


def zoo_answers(n_trials: int, n_documents: int, cache: Path, only_known: bool = False) -> Answers:
    """Reads the answers of the reference points and n_trials candidates, or goes on asking.

    Args:
        n_trials: Candidates beside the reference points.
        n_documents: Documents per task.
        cache: Folder of the .npz.
        only_known: Take what is there, and score nothing.
    """
    plan = _plan(n_documents)
    identity = [VERSION, SPREAD, plan.meta["fingerprint"]]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode())
    path = cache / f"answers-{digest.hexdigest()[:12]}.npz"
    known = dict(np.load(path)) if path.exists() else {"x": np.zeros((0, plan.space.dim))}
    total = len(plan.references) + n_trials
    if len(known["x"]) < total and not only_known:
        _ask(plan, known, total, path)
    total = min(total, len(known["x"]))
    names = [o.name for o in plan.evaluator.objectives]
    near = np.arange(total) >= len(plan.references)
    near[len(plan.references) :: 2] = False
    return Answers(
        {name: known[name][:total].astype(np.float64) for name in names},
        {o.name: _weights(plan, o) for o in plan.evaluator.objectives},
        near,
    )


def digit_answers(n_trials: int, n_documents: int) -> Answers:
    """The same kind of search for the merge of six digit classifiers (`map_digits.py`).

    Two objectives over the same pictures: hits, and the log-likelihood of the right digit (at
    least -30). A candidate takes a millisecond.
    """
    import digits
    import map_digits

    data = np.load(map_digits.DATA)
    basis = np.vstack([data["base"], *data["taus_6"]]).astype(np.float32)
    X, y, _, _ = digits.load()
    pick = np.random.default_rng(0).permutation(np.arange(map_digits.N_TRAIN, len(y)))
    X, y = X[pick[:n_documents]], y[pick[:n_documents]]
    points = [np.zeros(6), *np.eye(6), np.full(6, 1 / 6), np.full(6, 0.4)]
    first, hits, likelihoods = len(points), [], []
    for number in range(first + n_trials):
        if number >= first:
            points.append(_draw(number, first, points[int(np.argmax(np.mean(hits, axis=1)))]))
        z = digits.logits(np.array([1.0, *points[number]], np.float32) @ basis, X)
        z = z.astype(np.float64)
        likelihood = z[np.arange(len(y)), y] - np.logaddexp.reduce(z, axis=1)
        hits.append((z.argmax(axis=1) == y).astype(np.float64))
        likelihoods.append(np.maximum(likelihood, -30.0))
    near = np.arange(len(points)) >= first
    near[first::2] = False
    values = {"digits": np.array(hits), "digits_ll": np.array(likelihoods)}
    return Answers(values, dict.fromkeys(values), near)


def _plan(n_documents: int) -> Plan:
    """The zoo's search with these objectives, as the command line would build it."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from evomerge.cli.build import build_plan
    from evomerge.cli.compose import register_resolvers
    from evomerge.resources import resource_folder

    register_resolvers()
    folder = str(Path(str(resource_folder("conf"))).resolve())
    changes = [f"evaluator.splits={{search: {n_documents}, select: 0, test: 0}}"]
    with initialize_config_dir(folder, version_base="1.3"):
        config = compose("config", changes)
    config.run_name = "benchmark"
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    plain["objective"] = OBJECTIVES
    return build_plan(plain)


def _ask(plan: Plan, known: dict[str, Any], total: int, path: Path) -> None:
    """Scores the candidates that are missing, one after the other."""
    from evomerge.executors.base import Job
    from evomerge.executors.local import LocalExecutor
    from evomerge.executors.worker import WorkerSpec

    executor = LocalExecutor(WorkerSpec(plan.pool, plan.evaluator, device="cpu"), threads=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    references: list[Trial] = []
    values: list[dict[str, float]] = []
    names = [o.name for o in plan.evaluator.objectives]
    for number in range(total):
        if number < len(plan.references):
            label, recipe, x = plan.references[number]
        else:
            scale = Scale.fit(plan.evaluator.objectives, references)
            best = max(range(len(values)), key=lambda i: scale.mean(values[i]))
            label, x = "", _draw(number, len(plan.references), known["x"][best])
            recipe = plan.space.decode(x)
        if number == len(known["x"]):
            executor.submit(Job(Trial(number, "search", x, recipe, label=label)))
            (done,) = executor.collect()
            if done.scores is None:
                raise RuntimeError(done.error)
            point = np.full(plan.space.dim, np.nan) if x is None else x
            known["x"] = np.vstack([known["x"], point])
            for name in names:
                rows = np.asarray(done.scores.per_example[name])[None]
                known[name] = np.vstack([known[name], rows]) if name in known else rows
            np.savez_compressed(path.with_suffix(".part.npz"), **known)
            path.with_suffix(".part.npz").replace(path)
            print(
                f"{number + 1} of {total}", dict(done.scores.values), file=sys.stderr, flush=True
            )
        values.append({name: float(known[name][number].mean()) for name in names})
        if label:
            scores, state = Scores(values[-1], {}, {}), TrialState.COMPLETE
            references.append(Trial(number, "reference", x, recipe, state, scores, label=label))


def _draw(number: int, first: int, best: Array) -> Array:
    """The point of a candidate: random and near the best by turns."""
    rng = np.random.default_rng([0, number])
    if (number - first) % 2 == 0:
        return rng.uniform(size=len(best))
    return np.clip(best + SPREAD * rng.normal(size=len(best)), 0.0, 1.0)


def _weights(plan: Plan, objective: Objective) -> Array | None:
    """(n,) bytes of a task's documents in the order of its answers; None where each counts 1."""
    if objective.metric != "bits_per_byte":
        return None
    folder = Path(str(plan.config["evaluator"]["include_path"]))
    rows = json.loads((folder / f"{objective.task}.json").read_text(encoding="utf-8"))
    ids = plan.evaluator.samples("search")[objective.task]  # type: ignore[attr-defined]
    return np.array([float(len(rows[i]["text"].encode())) for i in ids])
