"""Two runs side by side: the best of each, paired on the documents that both were scored on."""

from __future__ import annotations

import dataclasses
import math

from evomerge.compare import paired_mean
from evomerge.errors import ConfigError
from evomerge.pick import pick
from evomerge.run import Run
from evomerge.scale import Scale
from evomerge.trial import Split, Trial


def against(run: Run, other: Run) -> Run:
    """Adds to ``run`` how its pick compares with that of ``other``.

    Args:
        run: The run that is reported.
        other: A run with the same objectives and documents.

    Returns:
        ``run`` with one more entry in ``meta["comparison"]``; the difference is other minus run,
        in the mean normalised score of the latest split on which both picks were scored.

    Raises:
        ConfigError: The runs were scored on other documents, or share no split.
    """
    mine, theirs = (r.meta.get("fingerprint", {}).get("evaluator") for r in (run, other))
    if mine != theirs:
        raise ConfigError(
            f"{run.path} and {other.path} were scored on other tasks or documents and cannot be "
            "compared in pairs; give them the same objective, evaluator and splits."
        )
    split, ours, rival = _picks(run, other)
    scale = Scale.fit(run.searched, run.trials, split)
    difference = paired_mean(rival, ours, scale)
    entry = {
        "title": f"{_space(other)} ({_searched(other)} trials)",
        "run_path": str(other.path),
        "split": split,
        "best": scale.mean(rival.scores.values) if rival.scores else math.nan,
        "difference": difference.mean,
        "low": difference.low,
        "high": difference.high,
    }
    comparison = [*(run.meta.get("comparison") or ()), entry]
    return dataclasses.replace(run, meta={**run.meta, "comparison": comparison})


def _picks(run: Run, other: Run) -> tuple[Split, Trial, Trial]:
    numbers = [pick(r, "best").number for r in (run, other)]
    splits: tuple[Split, ...] = ("test", "select", "search")
    for split in splits:
        found = [
            next((t for t in r.complete(split) if t.number == n), None)
            for r, n in zip((run, other), numbers, strict=True)
        ]
        if found[0] is not None and found[1] is not None:
            return split, found[0], found[1]
    raise ConfigError(f"{run.path} and {other.path} have no split on which both were scored.")


def _space(run: Run) -> str:
    space = run.meta.get("space") or {}
    return f"{space.get('name', 'own')}, {space.get('dim', '?')} dimensions"


def _searched(run: Run) -> int:
    return sum(t.kind == "search" and t.split == "search" for t in run.trials)
