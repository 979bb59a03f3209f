"""A trial as the plain data of a journal, and back.

What trials share (their models and layer groups) is a *layout*, written once and named by a hash;
a trial's attributes hold the rest of its recipe. From its ``result`` on, a trial is finished.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.document_scores import DocumentScores, arrays_of, path_of
from evomerge.journal import RESULT, Contents, Entry
from evomerge.recipe import LayerGroup, ModelRef, Recipe
from evomerge.trial import Scores, Trial, TrialState

SEARCH = "search"
"""The study that holds every search and reference trial, the layouts and the run's ``meta``."""


def attributes_of(trial: Trial, layout: str) -> dict[str, Any]:
    """What is written of a trial when it starts; ``layout`` from :func:`layout_of`."""
    return {
        "number": trial.number,
        "kind": trial.kind,
        "split": trial.split,
        "label": trial.label,
        "attempt": trial.attempt,
        "raced_after": trial.raced_after,
        "x": None if trial.x is None else trial.x.tolist(),
        "recipe": _varying(trial.recipe),
        "layout": layout,
    }


def result_of(trial: Trial, seq: int) -> dict[str, Any]:
    """The record from which on a trial counts as finished."""
    result: dict[str, Any] = {
        "seq": seq,
        "state": trial.state.value,
        "attempt": trial.attempt,
        "error": trial.error,
        "copied_from": trial.copied_from,
    }
    if trial.scores is not None:
        result["values"] = dict(trial.scores.values)
        result["stderr"] = {
            k: None if math.isnan(v) else v for k, v in trial.scores.stderr.items()
        }
        result["seconds"] = dict(trial.scores.seconds)
        result["asked"] = trial.scores.asked
        result["arrays"] = trial.copied_from is None and bool(arrays_of(trial.scores))
    return result


def ours(found: Contents) -> list[Entry]:
    """Our trials: another of Optuna's tools may have added some of its own."""
    return [e for e in found.entries if "number" in e.attrs]


def finished_trials(found: Contents, folder: Path) -> list[Trial]:
    """Finished trials of every split, in told order."""
    layouts = read_layouts(found)
    told = [e.attrs for e in ours(found) if RESULT in e.attrs]
    told.sort(key=lambda attrs: attrs[RESULT]["seq"])
    return [_finished(attrs, layouts, folder) for attrs in told]


def running_trials(found: Contents) -> list[Trial]:
    """Trials that were started and have no result, in the order in which they were."""
    layouts = read_layouts(found)
    return [_trial(e.attrs, layouts) for e in ours(found) if RESULT not in e.attrs]


@functools.lru_cache(maxsize=8)
def layout_of(
    models: tuple[ModelRef, ...],
    base: ModelRef | None,
    groups: tuple[LayerGroup, ...],
    tokenizer: str,
) -> tuple[str, dict[str, Any]]:
    """(key, data) of the part of a recipe that rarely changes."""
    data = Recipe("", models, base, groups, {}, tokenizer=tokenizer).to_dict()
    keys = ("format", "models", "base", "groups", "tokenizer")
    layout = {key: data[key] for key in keys if key in data}
    return hashlib.sha256(json.dumps(layout, sort_keys=True).encode()).hexdigest()[:16], layout


@dataclasses.dataclass(frozen=True)
class _Layout:
    models: tuple[ModelRef, ...]
    base: ModelRef | None
    groups: tuple[LayerGroup, ...]
    tokenizer: str


def read_layouts(found: Contents) -> dict[str, _Layout]:
    """Every layout that a journal holds, by its key."""
    layouts = {}
    for key, data in found.attrs.get(SEARCH, {}).items():
        if key.startswith("layout:"):
            layouts[key.removeprefix("layout:")] = _Layout(
                tuple(ModelRef(**m) for m in data["models"]),
                ModelRef(**data["base"]) if data["base"] else None,
                tuple(LayerGroup(g["name"], tuple(g["tensors"])) for g in data["groups"]),
                data.get("tokenizer", ""),
            )
    return layouts


def _varying(recipe: Recipe) -> dict[str, Any]:
    """The part of a recipe that changes from trial to trial."""
    return {
        "method": recipe.method,
        "fixed": dict(sorted(recipe.fixed.items())),
        "coefficients": {k: v.tolist() for k, v in sorted(recipe.coefficients.items())},
    }


def _trial(attrs: Mapping[str, Any], layouts: Mapping[str, _Layout], **extra: Any) -> Trial:
    layout, data = layouts[attrs["layout"]], attrs["recipe"]
    recipe = Recipe(
        method=data["method"],
        models=layout.models,
        base=layout.base,
        groups=layout.groups,
        coefficients={k: np.array(v) for k, v in data["coefficients"].items()},
        fixed=data["fixed"],
        tokenizer=layout.tokenizer,
    )
    return Trial(
        number=attrs["number"],
        kind=attrs["kind"],
        split=attrs["split"],
        label=attrs["label"],
        x=None if attrs["x"] is None else np.array(attrs["x"]),
        recipe=recipe,
        raced_after=attrs.get("raced_after"),
        **{"attempt": attrs["attempt"], **extra},
    )


def _finished(attrs: Mapping[str, Any], layouts: Mapping[str, _Layout], folder: Path) -> Trial:
    result = attrs[RESULT]
    scores = None
    if "values" in result:
        source = result["copied_from"]
        number = attrs["number"] if source is None else source
        scores = Scores(
            values=result["values"],
            stderr={k: math.nan if v is None else v for k, v in result["stderr"].items()},
            per_example=DocumentScores(path_of(folder, number, attrs["split"]), result["values"]),
            seconds=result["seconds"],
            asked=result.get("asked"),
        )
    return _trial(
        attrs,
        layouts,
        state=TrialState(result["state"]),
        scores=scores,
        error=result["error"],
        attempt=result["attempt"],
        copied_from=result["copied_from"],
    )
