"""Synthetic runs in memory, for whatever reads runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from evomerge.recipe import LayerGroup, ModelRef, Recipe
from evomerge.run import Run
from evomerge.trial import Objective, Scores, Trial, TrialState

GROUPS = 4
STOCK = "lm_eval --model hf --model_args pretrained={model} --tasks arith,code_bpb"


def recipe(weights, groups=GROUPS, names=("math", "code")):
    """A linear recipe with one weight per expert, a little different in every layer group."""
    tilt = 1 + 0.2 * np.linspace(-1, 1, groups)[:, None]
    return Recipe(
        method="linear",
        models=tuple(ModelRef(n, f"/models/{i}", f"{i:064d}") for i, n in enumerate(names)),
        base=ModelRef("base", "/models/base", "b" * 64),
        groups=tuple(LayerGroup(f"layers.{g}", (f"layers.{g}.weight",)) for g in range(groups)),
        coefficients={"weight": tilt * np.asarray(weights, dtype=float)[None, :]},
        fixed={"dtype": "float32"},
    )


def scores(rows, seconds=None):
    """Scores from per-document values: {objective: (n,) array, or (value, stderr)}."""
    values, errors, kept = {}, {}, {}
    for name, given in rows.items():
        if isinstance(given, tuple):
            values[name], errors[name] = given
            kept[name] = None
        else:
            row = np.asarray(given, dtype=np.float32)
            values[name] = float(np.nanmean(row))
            n = int(np.isfinite(row).sum())
            errors[name] = float(np.nanstd(row, ddof=1)) / n**0.5 if n > 1 else float("nan")
            kept[name] = row
    return Scores(values, errors, kept, seconds or {})


def trial(number, rows, kind="search", split="search", label="", weights=(0.5, 0.5), **more):
    """A COMPLETE trial from per-document values."""
    if "recipe" not in more:
        more["recipe"] = recipe(weights)
    return Trial(
        number=number,
        kind=kind,
        x=None if kind == "reference" else np.asarray(weights, dtype=float),
        state=TrialState.COMPLETE,
        scores=scores(rows, {"merge": 0.1, "score": 2.0}),
        split=split,
        label=label,
        **more,
    )


def failed(number, error="Traceback ...\nValueError: boom", **more):
    """A FAILED trial."""
    more.setdefault("recipe", recipe((0.9, 0.9)))
    return Trial(number, "search", np.zeros(2), state=TrialState.FAILED, error=error, **more)


def running(number, **more):
    """A trial that was started and is not finished."""
    return Trial(number, "search", np.zeros(2), recipe((0.1, 0.2)), **more)


OBJECTIVES = (
    Objective("math", "arith", "acc"),
    Objective("code", "code_bpb", "bits_per_byte", direction="minimize"),
)


def run(trials, objectives=OBJECTIVES, pending=(), path="runs/demo", **meta):
    """A run of these trials."""
    return Run(Path(path), tuple(objectives), tuple(trials), tuple(pending), meta)


def study(
    seed=0,
    n=24,
    gain=0.15,
    documents=160,
    objectives=OBJECTIVES,
    test=True,
    names=None,
    groups=GROUPS,
    pending=(),
    **meta,
):
    """A whole study: references, a search that closes in on a merge, finalists on select and test.

    Args:
        seed: Of the synthetic documents.
        n: Search trials.
        gain: How much better than the best expert's mean the best merge is, roughly.
        documents: Per task and split.
        objectives: What is scored; the expert of task k is expert k.
        test: Whether the finalists were scored on select and test.
        names: Names of the experts.
        groups: Layer groups.
        pending: Running trials.
        **meta: Further meta data.
    """
    rng = np.random.default_rng(seed)
    searched = [o for o in objectives if o.search]
    m = len(searched)
    names = names or ("math", "code", "chat", "law", "bio")[:m]
    hard = {
        (o.name, s): rng.normal(0, 0.6, documents)
        for o in objectives
        for s in ("search", "select", "test")
    }

    def rows(skill, split):
        found = {}
        for k, o in enumerate(objectives):
            if split == "search" and not o.search:
                continue
            s = skill[k] if k < m else float(np.mean(skill))
            noise = rng.normal(0, 0.12, documents)
            if o.direction == "maximize":
                found[o.name] = (s + 0.9 * hard[o.name, split] + noise > 0.45).astype(float)
            else:
                found[o.name] = -(1.6 - 0.7 * s + 0.3 * hard[o.name, split] + 0.1 * noise)
        return found

    def build(number, kind, weights, skill, split, label=""):
        made = recipe(weights, groups, names)
        return trial(number, rows(skill, split), kind, split, label, weights, recipe=made)

    eye = np.eye(m)
    points = [("base", np.zeros(m), np.full(m, 0.1))]
    points += [
        (f"expert {names[k]}", eye[k], 0.9 * eye[k] + 0.15 * (1 - eye[k])) for k in range(m)
    ]
    points += [("uniform average", np.full(m, 1 / m), np.full(m, 0.42))]
    points += [("task arithmetic", np.full(m, 0.7), np.full(m, 0.46))]
    trials = [
        build(i, "reference", w, s, "search", label) for i, (label, w, s) in enumerate(points)
    ]
    first = len(points)
    base_skill = np.full(m, 0.9 / m + 0.15 * (m - 1) / m)
    skills, weights = {}, {}
    for i in range(n):
        share = rng.dirichlet(np.full(m, 2.0)) * m
        progress = 1 - np.exp(-4 * i / n)
        skill = (base_skill - 0.25 + (0.25 + gain) * progress) * share**0.4
        skills[first + i] = skill + rng.normal(0, 0.02, m)
        weights[first + i] = 0.7 * share / 1.5 + rng.normal(0, 0.03, m)
        trials.append(build(first + i, "search", weights[first + i], skills[first + i], "search"))
    if test and n:
        best = sorted(skills, key=lambda t: -skills[t].mean())[:5]
        for split in ("select", "test"):
            for i, (label, w, s) in enumerate(points):
                trials.append(build(i, "final", w, s, split, label))
            trials += [build(t, "final", weights[t], skills[t], split) for t in best]
    meta = {
        "optimizer": "cma_es",
        "seed": 1,
        "n_trials": n,
        "pareto": m > 1,
        "space": {"name": "layerwise", "method": "linear", "dim": groups * m, "names": []},
        "models": {
            "base": {"name": "base", "path": "/m/base"},
            "experts": [{"name": name, "path": f"/m/{name}"} for name in names],
        },
        "documents": {
            s: {o.name: documents for o in objectives if o.search or s != "search"}
            for s in ("search", "select", "test")
        },
        "stock": dict.fromkeys(("search", "select", "test"), STOCK),
        "created": "2025-11-23T00:10:00",
        "fingerprint": "f" * 64,
        "versions": {"torch": "2.9.0", "lm-eval": "0.4.13"},
        **meta,
    }
    return Run(Path("runs/demo"), tuple(objectives), tuple(trials), tuple(pending), meta)
