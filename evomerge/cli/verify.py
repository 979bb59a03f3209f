"""Is what was written what was scored? The answer of ``--verify``."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from evomerge.cli.build import build_evaluator
from evomerge.errors import CheckpointError, ConfigError
from evomerge.experts import ExpertPool
from evomerge.recipe import Recipe
from evomerge.run import Run
from evomerge.trial import Objective, Trial

_RELATIVE = 1e-4
"""Scores of equal weights differ by the order of additions: other batches, other kernels."""
_OF_ERROR = 0.2
"""And answers on the edge flip; a share of the standard error that changes no conclusion."""


@dataclasses.dataclass(frozen=True)
class Check:
    """What was found: lines for the user, and whether it is what it should be."""

    lines: tuple[str, ...]
    passed: bool


def verify_scores(run: Run, scored: Trial, pool: ExpertPool, out: Path) -> Check:
    """Loads an export and scores it on the documents on which its trial was scored.

    Args:
        run: Its ``config.yaml`` says how to score.
        scored: The trial on the split to look at.
        pool: The models of its recipe.
        out: The export.

    Returns:
        Passed where every score is the trial's within rounding: 1e-4 of it, or a fifth of its
        standard error.

    Raises:
        EvomergeError: It cannot be loaded, or the tasks are not to be had any more.
    """
    from evomerge.materialize import LiveModel

    config = run.meta.get("config")
    if not isinstance(config, dict) or scored.scores is None:
        raise ConfigError(f"--verify: {run.path} does not say how {scored.name} was scored.")
    evaluator = build_evaluator(config["evaluator"], run.objectives, pool)
    trusted = bool(config.get("trust_remote_code"))
    written = ExpertPool.open(None, {"export": str(out)})
    live = LiveModel(written, _device(str(config["device"])), trust_remote_code=trusted)
    evaluator.prepare(live.model, live.tokenizer)
    found = evaluator.evaluate(live.model, scored.recipe, scored.split)
    lines, gaps = [], {}
    for o in run.objectives:
        if o.name not in scored.scores.values:
            continue
        before, after = scored.scores.values[o.name], found.values[o.name]
        gaps[o] = abs(after - before)
        lines.append(
            f"  {o.name}: {o.sign * after:.6g} in the checkpoint, {o.sign * before:.6g} in the "
            f"search ({scored.split} documents)"
        )
    odd = [o for o, gap in gaps.items() if gap > _rounding(scored, o)]
    worst = max(gaps, key=lambda o: gaps[o] / max(_rounding(scored, o), 1e-300))
    verdict = "other scores than the trial's" if odd else "the trial's scores"
    lines.insert(0, f"verify: {verdict}; largest difference {gaps[worst]:.2g} ({worst.name})")
    return Check(tuple(lines), not odd)


def verify_tensors(recipe: Recipe, pool: ExpertPool, out: Path) -> Check:
    """Loads an export as transformers does and compares its tensors with the recipe's merge.

    Args:
        recipe: What was merged.
        pool: Its models.
        out: The export.

    Returns:
        Passed where every tensor is there and equal, bit by bit.

    Raises:
        CheckpointError: It cannot be loaded.
    """
    import torch

    from evomerge.cache import cache_folder
    from evomerge.export.shards import DTYPES
    from evomerge.materialize import LiveModel, Merger, rows

    written = ExpertPool.open(None, {"export": str(out)})
    LiveModel(written, "cpu")
    (checkpoint,) = written.experts
    merger = Merger(pool, recipe.method, recipe.fixed, cache=cache_folder(), keep=False)
    dtypes = {v: getattr(torch, k) for k, v in DTYPES.items()}
    worst, where, n = 0.0, "", 0
    with torch.no_grad():
        for name, coefficients in rows(recipe):
            if name not in checkpoint.tensors:
                raise CheckpointError(f"{out} lacks the tensor {name!r}; export it again.")
            info = checkpoint.tensors[name]
            tensor = torch.empty(info.shape, dtype=dtypes[info.dtype])
            merger.merge_tensor(name, coefficients, tensor)
            merger.forget(name)
            there = checkpoint.tensor(name)
            n += 1
            if not torch.equal(there, tensor):
                gap = float((there.float() - tensor.float()).abs().max())
                worst, where = max((worst, where), (gap, name))
    if where:
        line = f"verify: other tensors than the merge's; largest difference {worst:.2g} ({where})"
        return Check((line,), passed=False)
    return Check((f"verify: it loads, and {n} tensors equal the merge bit by bit",), passed=True)


def _rounding(scored: Trial, objective: Objective) -> float:
    assert scored.scores is not None  # noqa: S101 - checked by the caller
    error = scored.scores.stderr.get(objective.name, math.nan)
    relative = _RELATIVE * max(1.0, abs(scored.scores.values[objective.name]))
    return max(relative, _OF_ERROR * error) if math.isfinite(error) else relative


def _device(device: str) -> str:
    import torch

    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"
