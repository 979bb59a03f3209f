"""A base and experts -> what the doctor knows of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evomerge.diagnose.advice import Advice, advise
from evomerge.diagnose.casting import LEVELS, realised_coefficients
from evomerge.diagnose.compatibility import inspect
from evomerge.diagnose.finding import Finding
from evomerge.diagnose.gauge import Gauge, gauge
from evomerge.diagnose.vectors import Array, Vectors, task_vectors
from evomerge.diagnose.verdicts import findings
from evomerge.errors import ConfigError
from evomerge.experts import ExpertPool


@dataclasses.dataclass(frozen=True, eq=False)
class Diagnosis:
    """What the doctor found.

    Attributes:
        base: Where the base lies, as the user wrote it.
        experts: Expert name to where it lies.
        findings: Of all models, those of the base first, then in the experts' order.
        vectors: Statistics of the experts that fit the base; None where there are none.
        gauge: Their attention's factors and products; None likewise.
        realised: (K, levels) realised coefficients; None where nothing is rounded.
        advice: Where to start; None where fewer than one expert is left.
    """

    base: str
    experts: Mapping[str, str]
    findings: tuple[Finding, ...]
    vectors: Vectors | None = None
    gauge: Gauge | None = None
    realised: Array | None = None
    advice: Advice | None = None

    @property
    def blocked(self) -> tuple[str, ...]:
        """Models that cannot be merged as they are, the base among them, in order."""
        bad = {f.model for f in self.findings if f.blocks}
        return tuple(n for n in ("base", *self.experts) if n in bad)

    @property
    def mergeable(self) -> tuple[str, ...]:
        """Experts that can be merged as they are."""
        if "base" in self.blocked:
            return ()
        return tuple(n for n in self.experts if n not in self.blocked)

    @property
    def headline(self) -> str:
        """The answer in one sentence."""
        good, bad, n = self.mergeable, self.blocked, len(self.experts)
        if "base" in bad:
            return "Nothing can be merged: the base cannot be used."
        if not bad:
            return (
                "Yes: this expert can be merged with its base."
                if n == 1
                else f"Yes: these {n} experts can be merged."
            )
        kinds = {f.model: f.kind for f in reversed(self.findings) if f.blocks}
        named = ", ".join(f"{b!r} ({kinds[b]})" for b in bad)
        as_is = "as it is" if len(bad) == 1 else "as they are"
        if not good:
            return f"No: {named} cannot be merged {as_is}."
        rest = ", ".join(map(repr, good))
        return f"Not all of them: {named} cannot be merged {as_is}; {rest} can."

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain data without NaN."""
        data: dict[str, Any] = {
            "headline": self.headline,
            "base": self.base,
            "experts": dict(self.experts),
            "mergeable": list(self.mergeable),
            "blocked": list(self.blocked),
            "findings": [dataclasses.asdict(f) for f in self.findings],
            "advice": dataclasses.asdict(self.advice) if self.advice else None,
        }
        if self.vectors is not None and self.gauge is not None:
            names = self.vectors.names
            data["task_vectors"] = _vectors_json(self.vectors)
            data["gauge"] = _gauge_json(self.gauge, names)
            data["realised_coefficients"] = self.realised is not None and {
                "requested": list(LEVELS),
                "realised": dict(zip(names, self.realised.tolist(), strict=True)),
            }
        plain: dict[str, Any] = _without_nan(data)
        return plain


def _vectors_json(v: Vectors) -> dict[str, Any]:
    """One entry per expert in every list; one mapping per layer group."""
    return {
        "experts": list(v.names),
        "relative_norm": v.overall.tolist(),
        "cosine": v.cosines.tolist(),
        "sign_conflict": v.overall_conflict,
        "moved_entries": v.moved.tolist(),
        "likeness_to_base": {
            r: v.likeness(r).tolist() for r in ("embedding", "attention", "mlp", "head")
        },
        "groups": [
            {
                "name": g.group.name,
                "role": g.role,
                "size": g.size,
                "relative_norm": v.relative[i].tolist(),
                "sign_conflict": float(v.conflict[i]),
                "gram": v.grams[i].tolist(),
            }
            for i, g in enumerate(v.groups)
        ],
    }


def _gauge_json(found: Gauge, names: Sequence[str]) -> dict[str, Any]:
    """Per pair and expert: one number per checked layer."""
    pairs = {
        pair: {
            name: {"factors": change[:, k, 0].tolist(), "products": change[:, k, 1].tolist()}
            for k, name in enumerate(names)
        }
        for pair, change in found.change.items()
    }
    return {"layers": list(found.layers), "skipped": dict(found.skipped), "pairs": pairs}


def diagnose(
    base: str, experts: Mapping[str, str], progress: Callable[[str], None] | None = None
) -> Diagnosis:
    """Examines a base and experts; nothing is written but the audit's cache.

    Args:
        base: Folder or hub id of the model that the experts were fine-tuned from.
        experts: Expert name to folder or hub id.
        progress: Told in a few words what is being read.

    Raises:
        ConfigError: No experts, or one called ``base``.
    """
    if not experts or "base" in experts:
        raise ConfigError("doctor needs at least one expert, and none may be called 'base'.")
    told = progress or (lambda _: None)
    seen = inspect(base, experts, lambda name: told(f"reading {name}"))
    if seen.base is None or not seen.fitting:
        return Diagnosis(base, experts, _ordered(seen.findings, experts))
    pool = ExpertPool.of(seen.base, seen.fitting)
    vectors = task_vectors(pool, lambda name: told(f"task vectors: {name}"))
    rewritten = gauge(pool, lambda name: told(f"gauge check: {name}"))
    realised = realised_coefficients(pool)
    found = [*seen.findings, *findings(vectors, rewritten, realised)]
    bad = {f.model for f in found if f.blocks}
    kept = [k for k, name in enumerate(vectors.names) if name not in bad]
    return Diagnosis(
        base,
        experts,
        _ordered(found, experts),
        vectors,
        rewritten,
        realised,
        advise(vectors, kept, rounded=any(f.kind == "rounding" for f in found)) if kept else None,
    )


def _ordered(found: Any, experts: Mapping[str, str]) -> tuple[Finding, ...]:
    """By model; of one model, what blocks it first."""
    names = ["base", *experts]
    return tuple(sorted(found, key=lambda f: (names.index(f.model), not f.blocks)))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
