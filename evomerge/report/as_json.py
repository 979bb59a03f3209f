"""The report as plain data that strict JSON can hold."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from evomerge.choose import finalists, front, is_reference
from evomerge.compare import constraints_of, is_scored, scale_of, smallest_visible
from evomerge.constraints import Constraints
from evomerge.luck import luck
from evomerge.report.coefficients import effects
from evomerge.report.data import plain, raw, replace
from evomerge.report.leads import leads
from evomerge.report.progress import Progress, progress
from evomerge.run import Run
from evomerge.scale import Scale
from evomerge.trial import SPLITS, Trial, TrialState
from evomerge.verdict import Verdict, verdict


def to_json(run: Run) -> dict[str, Any]:
    """A run as plain data that strict JSON can hold: NaN and infinities become null.

    Args:
        run: Any run, finished or not.

    Returns:
        ``trials`` (one entry per trial and split: number, kind, split, state, label, recipe,
        scores {raw, normalised, mean, scalar, feasible, seconds}, stderr, asked, error, attempt,
        copied_from; running ones last), ``front`` and ``finalists`` (trial numbers),
        ``reference`` (label to number and mean per split), ``verdict``, ``luck`` (what of the
        search's gain its documents are expected to have added: :mod:`evomerge.luck`), ``leads``
        (of each finalist over the verdict's rival per split), ``mattered`` (coefficients, the most
        explaining first), ``progress`` (best so far and hypervolume per search trial told),
        ``objectives``,
        ``documents``, ``scale``, ``smallest_visible``, ``running`` (how many), ``path`` and
        ``meta``. Per-document scores and tensor names stay in the run folder.
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
    answer = verdict(run)
    data = {
        "trials": [
            _trial(t, run, scales[t.split], bounds[t.split]) for t in (*run.trials, *run.running)
        ],
        "front": [t.number for t in front(run)],
        "finalists": [t.number for t in finalists(run)],
        "reference": reference,
        "verdict": _verdict(answer),
        "luck": _luck(run),
        "leads": [
            {
                "number": lead.trial.number,
                "luck": lead.luck,
                "lead": {split: dataclasses.asdict(d) for split, d in lead.on.items()},
            }
            for lead in leads(run, answer)
        ],
        "mattered": [
            {"name": e.name, "share": e.share, "best_at": e.best_at, "clear": sorted(e.clear)}
            for e in effects(run)
        ],
        "progress": _progress(progress(run)),
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
        "asked": trial.scores.asked if trial.scores else None,
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
        "flattery": found.flattery,
        "expected": found.expected,
        "sentence": found.sentence,
    }


def _verdict(v: Verdict) -> dict[str, Any]:
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


def _progress(course: Progress) -> dict[str, Any]:
    return {
        "number": [t.number for t in course.trials],
        "seconds": course.seconds,
        "best": course.best,
        "hypervolume": course.volume,
        "hypervolume_before": course.volume_before,
    }
