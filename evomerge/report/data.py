"""The report as plain data, and what the other rooms of the report share."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import math
import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.choose import finalists, front, is_reference, verdict
from evomerge.compare import constraints_of, is_scored, scale_of, smallest_visible
from evomerge.constraints import Constraints
from evomerge.errors import ExportError
from evomerge.luck import luck
from evomerge.recipe import Recipe
from evomerge.run import Run
from evomerge.scale import Scale
from evomerge.trial import SPLITS, Objective, Split, Trial, TrialState


def to_json(run: Run) -> dict[str, Any]:
    """A run as plain data that strict JSON can hold: NaN and infinities become null.

    Args:
        run: Any run, finished or not.

    Returns:
        ``trials`` (one entry per trial and split: number, kind, split, state, label, recipe,
        scores {raw, normalised, mean, scalar, feasible, seconds}, stderr, error, attempt,
        copied_from; running ones last), ``front`` and ``finalists`` (trial numbers),
        ``reference`` (label to number and mean per split), ``verdict``, ``luck``
        (:mod:`evomerge.luck`), ``objectives``, ``documents``, ``scale``, ``smallest_visible``,
        ``running`` (how many), ``path`` and ``meta``. Per-document scores and tensor names stay in
        the run folder.
    """
    scales = {split: scale_of(run, split) for split in SPLITS}
    bounds = {split: constraints_of(run, split) for split in SPLITS}
    reference: dict[str, dict[str, Any]] = {}
    for trial in run.trials:
        if not is_reference(trial):
            continue
        entry = reference.setdefault(trial.label or trial.name, {"number": trial.number})
        if trial.scores and is_scored(trial, scales[trial.split].names):
            entry.setdefault("mean", {})[trial.split] = scales[trial.split].mean(
                trial.scores.values
            )
    data = {
        "trials": [
            _trial(t, run, scales[t.split], bounds[t.split]) for t in (*run.trials, *run.running)
        ],
        "front": [t.number for t in front(run)],
        "finalists": [t.number for t in finalists(run)],
        "reference": reference,
        "verdict": _verdict(run),
        "luck": _luck(run),
        "objectives": [dataclasses.asdict(o) for o in run.objectives],
        "documents": run.meta.get("documents", {}),
        "scale": {split: dataclasses.asdict(scale) for split, scale in scales.items()},
        "smallest_visible": {split: smallest_visible(run, split=split) for split in SPLITS},
        "running": len(run.running),
        "path": run.path,
        "meta": dict(run.meta),
    }
    cleaned = plain(data)
    assert isinstance(cleaned, dict)  # noqa: S101  # for the type checker
    return cleaned


def write_json(run: Run, path: Path) -> None:
    """Writes :func:`to_json` to a file, in one step.

    Raises:
        ExportError: The file cannot be written.
    """
    text = json.dumps(to_json(run), allow_nan=False, indent=1, ensure_ascii=False)
    replace(path, (text + "\n").encode("utf-8", "replace"))


def plain(value: Any) -> Any:
    """Anything to what strict JSON can hold; what has no such form becomes its ``str``."""
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    return str(value)


def replace(path: Path, content: bytes) -> None:
    """Writes a file so that readers see the old content or the new one, never half.

    Raises:
        ExportError: The file cannot be written; the old one, if any, is as it was.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        part.replace(path)
    except OSError as e:
        with contextlib.suppress(OSError):
            part.unlink()
        raise ExportError(
            f"cannot write {path}: {e.strerror or e}; give a file in a folder you may write to."
        ) from e


def printable(text: object) -> str:
    """A name as one line without control characters, which could rewrite a terminal.

    Neither does it hold what reverses the direction of the text after it.
    """
    shown = "".join(
        " " if c in "\n\t\r" else c if unicodedata.category(c) not in _UNSEEN else "\ufffd"
        for c in str(text).translate(_BIDI)
    )
    return shown.strip() or "(no name)"


_UNSEEN = {"Cc", "Cs", "Zl", "Zp"}
_BIDI = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], "\ufffd")


def called(trial: Trial) -> str:
    """How a table calls a trial."""
    return printable(trial.name)


def summary(recipe: Recipe, limit: int = 4) -> str:
    """A recipe in one line: the mean over the layer groups of each coefficient.

    Args:
        recipe: What to describe.
        limit: At most this many experts by name.

    Returns:
        For example ``linear: weight math .62, code .38``.
    """
    parts = []
    for parameter, matrix in recipe.coefficients.items():
        means = matrix.mean(axis=0)
        if matrix.shape[1] == 1 and len(recipe.models) > 1:
            parts.append(f"{printable(parameter)} {means[0]:.2f}")
            continue
        order = np.argsort(-np.abs(means), kind="stable")[:limit]
        named = [f"{printable(recipe.models[k].name)} {means[k]:.2f}" for k in sorted(order)]
        more = ", ..." if len(means) > limit else ""
        parts.append(f"{printable(parameter)} " + ", ".join(named) + more)
    return f"{printable(recipe.method)}: " + "; ".join(parts)


def table_split(run: Run) -> Split:
    """The split of the main table: test once something was scored there, else search."""
    return "test" if run.complete("test") else "search"


def raw(objective: Objective, trial: Trial) -> float:
    """The raw value in its own direction, NaN where it was not scored."""
    value = trial.scores.values.get(objective.name, math.nan) if trial.scores else math.nan
    return objective.sign * value


def _trial(trial: Trial, run: Run, scale: Scale, bounds: Constraints) -> dict[str, Any]:
    recipe = trial.recipe
    scores = None
    if trial.scores is not None:
        scored = is_scored(trial, scale.names)
        scores = {
            "raw": {
                o.name: raw(o, trial) for o in run.objectives if o.name in trial.scores.values
            },
            "normalised": scale.normalise(trial.scores.values) if scored else {},
            "mean": scale.mean(trial.scores.values) if scored else None,
            "scalar": scale.scalar(trial.scores.values) if scored else None,
            "feasible": bounds.kept(trial.scores.values),
            "seconds": trial.scores.seconds,
        }
    return {
        "number": trial.number,
        "kind": trial.kind,
        "split": trial.split,
        "state": trial.state,
        "label": trial.label,
        "recipe": {
            "id": recipe.id,
            "method": recipe.method,
            "base": recipe.base.name if recipe.base else None,
            "models": [m.name for m in recipe.models],
            "groups": [g.name for g in recipe.groups],
            "coefficients": recipe.coefficients,
            "fixed": recipe.fixed,
        },
        "scores": scores,
        "stderr": trial.scores.stderr if trial.scores else None,
        "error": trial.error if trial.state is TrialState.FAILED else None,
        "attempt": trial.attempt,
        "copied_from": trial.copied_from,
    }


def _luck(run: Run) -> dict[str, Any] | None:
    """What of the search's gain is expected to be luck; None where nothing can be said."""
    found = luck(run)
    if found is None:
        return None
    return {
        "trial": found.trial.number,
        "rival": found.rival.name,
        "gain": found.gain,
        "luck": found.luck,
        "expected": found.expected,
        "sentence": found.sentence,
    }


def _verdict(run: Run) -> dict[str, Any]:
    v = verdict(run)
    return {
        "decision": v.decision,
        "headline": v.headline,
        "sentence": v.sentence,
        "split": v.split,
        "finished": v.finished,
        "trial": v.trial.number if v.trial else None,
        "rival": v.rival.name if v.rival else None,
        "differences": [
            {"against": t.name, "number": t.number, **dataclasses.asdict(d)}
            for t, d in v.differences
        ],
    }
