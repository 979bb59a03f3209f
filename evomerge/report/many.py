"""Many runs at once: drivers, spaces or settings compared at equal budget over their seeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.compare import Difference
from evomerge.errors import ConfigError
from evomerge.report.data import printable
from evomerge.report.progress import Progress, progress
from evomerge.run import Run
from evomerge.scale import Scale
from evomerge.store import is_run


@dataclasses.dataclass(frozen=True)
class Contender:
    """Runs that differ in nothing but their seed.

    Attributes:
        name: What sets it apart from the other contenders.
        runs: Its r runs.
        courses: (r,) their progress, all on one scale.
    """

    name: str
    runs: list[Run]
    courses: list[Progress]

    def best(self, budget: int) -> list[float]:
        """(r,) best scalarised score after so many trials."""
        return [c.best[budget - 1] for c in self.courses]

    def volume(self, budget: int) -> list[float]:
        """(r,) hypervolume after so many trials; NaN where it has none."""
        return [c.volume[budget - 1] if c.volume else math.nan for c in self.courses]

    def best_in(self, seconds: float) -> list[float]:
        """(r,) best scalarised score within so much worker time."""
        found = []
        for c in self.courses:
            done = int(np.searchsorted(c.seconds, seconds * (1 + 1e-9), side="right"))
            found.append(c.best[done - 1] if done else math.nan)
        return found


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Contenders, the one with the best median first.

    Attributes:
        contenders: At least one.
        scale: How every run's values are normalised: against the best expert of all of them.
        budget: Search trials that every run has told: the equal budget.
        seconds: Worker time that every run has spent.
    """

    contenders: list[Contender]
    scale: Scale
    budget: int
    seconds: float

    @property
    def runs(self) -> list[Run]:
        """All runs."""
        return [r for c in self.contenders for r in c.runs]


def compare(runs: Sequence[Run]) -> Comparison:
    """Puts runs side by side.

    Args:
        runs: At least one, with the same objectives and documents.

    Raises:
        ConfigError: Runs that cannot be compared, or one that has told no search trial.
    """
    first = runs[0]
    for run in runs[1:]:
        if _of(run, "evaluator") != _of(first, "evaluator") or run.searched != first.searched:
            raise ConfigError(
                f"{first.path} and {run.path} were scored on other tasks or documents and cannot "
                "be compared; give runs with the same objective, evaluator and splits, or one "
                "run at a time."
            )
    ways = {str(r.meta.get("scalarisation") or "mean") for r in runs}
    trials = [t for r in runs for t in r.trials]
    scale = Scale.fit(first.searched, trials, "search", ways.pop() if len(ways) == 1 else "mean")
    named: dict[str, list[Run]] = {}
    for name, run in zip(names(runs), runs, strict=True):
        named.setdefault(name, []).append(run)
    found = [Contender(n, rs, [progress(r, scale) for r in rs]) for n, rs in named.items()]
    courses = [c for one in found for c in one.courses]
    budget = min(len(c.trials) for c in courses)
    if not budget:
        empty = next(r for r in runs if not progress(r, scale).trials)
        raise ConfigError(f"{empty.path} has told no search trial yet; leave it out, or wait.")
    found.sort(key=lambda c: -_or_least(median(c.best(budget))))
    return Comparison(found, scale, budget, min(c.seconds[-1] for c in courses))


def median(values: Sequence[float]) -> float:
    """The median of the known values, NaN where there are none."""
    known = [v for v in values if math.isfinite(v)]
    return float(np.median(known)) if known else math.nan


def paired_seeds(a: Contender, b: Contender, budget: int) -> tuple[Difference, int]:
    """The difference a - b in best score between runs of equal seeds.

    Returns:
        The difference with its 95% t interval over the seeds that both have (NaN below three),
        and in how many of those ``a`` is ahead.
    """
    sides = []
    for c in (a, b):
        scores = zip(c.runs, c.best(budget), strict=True)
        sides.append({r.meta.get("seed"): v for r, v in scores if math.isfinite(v)})
    gaps = np.array([sides[0][s] - sides[1][s] for s in sides[0] if s in sides[1]])
    n = len(gaps)
    mean = float(gaps.mean()) if n else math.nan
    if n < 3:
        return Difference(mean, math.nan, math.nan, math.nan, n), int((gaps > 0).sum())
    from scipy.special import stdtrit

    stderr = float(gaps.std(ddof=1)) / math.sqrt(n)
    half = float(stdtrit(n - 1, 0.975)) * stderr
    return Difference(mean, stderr, mean - half, mean + half, n), int((gaps > 0).sum())


def names(runs: Sequence[Run]) -> list[str]:
    """What sets each run apart, apart from its seed: driver, search space, settings."""
    flat = [_flat(_shaping(r)) for r in runs]
    keys = list(dict.fromkeys(k for f in flat for k in f))
    heads = [_head(r) for r in runs]
    shown = [i for i in range(3) if len({h[i] for h in heads}) > 1] or [0]
    made = [" \u00b7 ".join(h[i] for i in shown) for h in heads]
    full = []
    for name, own in zip(made, flat, strict=True):
        rivals = [f for n, f in zip(made, flat, strict=True) if n == name]
        differ = [k for k in keys if len({str(f.get(k)) for f in rivals}) > 1]
        settings = [f"{k.rpartition('.')[2]} {own[k]}" for k in differ if k in own]
        full.append(printable(", ".join([name, *settings])))
    return full


def _head(run: Run) -> tuple[str, str, str]:
    space, models = run.meta.get("space") or {}, run.meta.get("models") or {}
    return (
        printable(run.meta.get("optimizer", "search")),
        printable(space.get("name") or space.get("method") or "space"),
        printable(models.get("name") or "models"),
    )


def _of(run: Run, key: str) -> Any:
    found = run.meta.get("fingerprint")
    return found.get(key) if isinstance(found, Mapping) else None


def _shaping(run: Run) -> Mapping[str, Any]:
    found = run.meta.get("fingerprint")
    if not isinstance(found, Mapping):
        return {}
    return {k: v for k, v in found.items() if k not in {"seed", "evaluator", "objectives"}}


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        elif not isinstance(value, list) and key != "_target_":
            found[f"{prefix}{key}"] = value
    return found


def _or_least(value: float) -> float:
    return value if math.isfinite(value) else -math.inf


def run_folders(paths: Sequence[Path]) -> list[Path]:
    """Run folders among ``paths``, and those inside of the others (a sweep's folder).

    Returns:
        Each once; a path that holds none is kept as it is, so that opening it says why.
    """
    found: dict[Path, None] = {}
    for path in paths:
        inside = sorted({p.parent for p in path.glob("**/journal.*") if is_run(p.parent)})
        for folder in [path] if is_run(path) or not inside else inside:
            found.setdefault(folder)
    return list(found)
