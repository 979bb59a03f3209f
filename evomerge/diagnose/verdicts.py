"""From numbers to findings: the thresholds, where they come from, and what is said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from evomerge.diagnose.casting import LEVELS
from evomerge.diagnose.compatibility import same_as_base
from evomerge.diagnose.finding import Finding
from evomerge.diagnose.gauge import Gauge
from evomerge.diagnose.vectors import Array, Vectors

FOREIGN = 0.3
"""Cosine of an expert's matrices and the base's below which it did not start there. Independent
initialisations have 0 +- 1/sqrt(entries). A task vector r times as long as the base leaves
1/sqrt(1 + r^2): 0.71 for r = 1, 0.3 for r = 3; the zoo's experts have 0.98 to 1.00
(docs/doctor.md)."""
REWRITTEN = 0.2
"""Relative change f of a layer's factors from which a rewriting does harm: averaging W_v with
W_v S loses f^2/4 of the head, here 1%, which is what task vectors bring."""
HIDDEN = 1.5
"""How many times larger the factors' change is than that of their products. Changes that are
learned, one factor not knowing of the other, give 1 or less: the product's relative change is
sqrt(a^2 + b^2) for factors changed by a and b, which is at least that of both together (the zoo:
0.62 to 0.76). Above 1.5, more than half of the squared change is invisible in what the layer
computes."""
OUTLIER = 4.0
"""Times the median of the same role's groups (at least 4 of them) from which a layer group
stands out. The zoo's stay within 1.6, random families' within 1.1 (docs/doctor.md)."""
STEP = 0.05
"""How far off a realised coefficient has to be: about what a search can tell apart. bfloat16
weights stay nearer where the expert moved them by 2% or more (docs/doctor.md)."""
UNEVEN = 4.0
"""Times the median of the other experts' task vectors from which one stands out."""
FAR = 1.0
"""Task vector as long as the base: little of the base is left."""


def findings(vectors: Vectors, gauge: Gauge, realised: Array | None) -> Iterator[Finding]:
    """What the statistics say of each expert.

    An expert that cannot be merged gets the reason alone: its other numbers follow from that, and
    nothing is measured against it.
    """
    healthy = []
    for k, name in enumerate(vectors.names):
        found = _unchanged(name, k, vectors) or _rewritten(name, k, gauge)
        found = found or _foreign(name, k, vectors)
        if found:
            yield found
        else:
            healthy.append(k)
    for k in healthy:
        name = vectors.names[k]
        yield from _sizes(name, k, [i for i in healthy if i != k], vectors)
        yield from _outliers(name, k, vectors)
        if realised is not None:
            yield from _rounded(name, realised[k])


def hidden(change: Array) -> npt.NDArray[np.bool_]:
    """Which (..., 2) changes of factors and products are a rewriting that does harm."""
    factors, products = change[..., 0], change[..., 1]
    found: npt.NDArray[np.bool_] = (factors >= REWRITTEN) & (factors > HIDDEN * products)
    return found


def _unchanged(name: str, k: int, vectors: Vectors) -> Finding | None:
    return same_as_base(name) if vectors.moved[k] == 0 else None


def _rewritten(name: str, k: int, gauge: Gauge) -> Finding | None:
    """Factors far from the base's whose products are near."""
    places, changes = [], []
    for pair, change in gauge.change.items():
        factors, products = change[:, k].T
        hit = hidden(change[:, k])
        if hit.any():
            where = "every layer" if hit.all() else f"{hit.sum()} of {len(hit)} layers"
            matrices = "W_q and W_k" if pair == "QK" else "W_v and W_o"
            places.append(f"{matrices} of {where}")
            changes.append((float(factors[hit].max()), float(products[hit].max())))
    if not places:
        return None
    factor, product = (max(c[i] for c in changes) for i in (0, 1))
    return Finding(
        name,
        "re-parametrised",
        blocks=True,
        text=f"{name!r} computes what a fine-tune of the base computes, but its weights were "
        f"re-parametrised: in {' and in '.join(places)} the factors differ from the base's by "
        f"up to {factor:.0%}, their products by {product:.1%} at most. Merging it as it is will "
        "destroy it: the merge mixes weights that are written in different coordinates.",
        remedy="Ask for the weights as they were trained. They may have been locked against "
        "merging on purpose (MergeLock), or rescaled for quantisation.",
    )


def _foreign(name: str, k: int, vectors: Vectors) -> Finding | None:
    """Matrices that share nothing with the base's."""
    likeness = {r: float(vectors.likeness(r)[k]) for r in ("embedding", "mlp", "attention")}
    known = {r: v for r, v in likeness.items() if np.isfinite(v)}
    low = [r for r, v in known.items() if v < FOREIGN]
    if not low:
        return None
    cosines = ", ".join(f"{r} {v:.2f}" for r, v in known.items())
    if len(low) < len(known):
        return Finding(
            name,
            "partly foreign",
            blocks=True,
            text=f"{name!r} shares its {' and '.join(r for r in known if r not in low)} weights "
            f"with the base, but not those of its {' and '.join(low)} (cosine with the base's: "
            f"{cosines}). They were trained anew, or their units were put in another order.",
            remedy="Merging averages unrelated units there. Leave it out, or align its units "
            "with the base's first.",
        )
    return Finding(
        name,
        "not from this base",
        blocks=True,
        text=f"{name!r} has the base's architecture but was not fine-tuned from it: its weights "
        f"have nothing in common with the base's (cosine: {cosines}; a fine-tune has 0.7 or "
        "more, an independent training about 0).",
        remedy="Find the base it was trained from, or leave it out: a merge of unrelated weights "
        "computes nothing.",
    )


def _sizes(name: str, k: int, others: Sequence[int], vectors: Vectors) -> Iterator[Finding]:
    size = float(vectors.overall[k])
    typical = float(np.median(vectors.overall[list(others)])) if others else size
    if size >= FAR:
        yield Finding(
            name,
            "far from the base",
            blocks=False,
            text=f"{name!r} moved its weights by {size:.0%} of the base's norm: little of the "
            "base is left, and a merge is no longer near any of its models.",
            remedy="Expect small coefficients, and compare the verdict with the expert alone.",
        )
    if not typical / UNEVEN <= size <= typical * UNEVEN:
        larger = size > typical
        yield Finding(
            name,
            "uneven",
            blocks=False,
            text=f"{name!r} moved {size / typical if larger else typical / size:.1f} times "
            f"{'further' if larger else 'less'} than the other experts "
            f"({size:.2%} of the base's norm; they: {typical:.2%}).",
            remedy="Give every expert a coefficient of its own (as `global` does); an average "
            f"would {'let it drown the others' if larger else 'hardly contain it'}.",
        )


def _outliers(name: str, k: int, vectors: Vectors) -> Iterator[Finding]:
    """Layer groups that moved much more or less than those of the same role."""
    odd = []
    for role in dict.fromkeys(g.role for g in vectors.groups):
        rows = [g for g, group in enumerate(vectors.groups) if group.role == role]
        values = vectors.relative[rows, k]
        typical = float(np.nanmedian(values)) if len(rows) >= 4 else 0.0
        if typical > 0:
            odd += [
                (vectors.groups[g].group.name, value / typical)
                for g, value in zip(rows, values, strict=True)
                if np.isfinite(value) and not typical / OUTLIER <= value <= typical * OUTLIER
            ]
    if odd:
        odd.sort(key=lambda pair: -abs(np.log(max(pair[1], 1e-12))))
        shown = "; ".join(
            f"{where} {'did not move' if ratio == 0 else f'{ratio:.2g} times'}"
            for where, ratio in odd[:3]
        )
        yield Finding(
            name,
            "outlier",
            blocks=False,
            text=f"{name!r} moved {len(odd)} layer group(s) unlike the others of their role "
            f"(against the median: {shown}).",
            remedy="Frozen layers are harmless. One that moved much more deserves a coefficient "
            "of its own: search `blockwise` or `layerwise` after `global`.",
        )


def _rounded(name: str, realised: Array) -> Iterator[Finding]:
    gap = np.abs(realised - np.array(LEVELS))
    if np.nanmax(gap, initial=0.0) > STEP:
        worst = int(np.nanargmax(gap))
        usual = LEVELS.index(0.4)
        shown = sorted({usual, worst})
        pairs = ", ".join(f"{LEVELS[i]:g} becomes {realised[i]:.2f}" for i in shown)
        yield Finding(
            name,
            "rounding",
            blocks=False,
            text=f"{name!r} is so near the base that rounding the merge to the base's dtype turns "
            f"its coefficient into a step: {pairs}.",
            remedy="Search with space.fixed.rounding=dither, or with dtype=float32 and "
            "export with --dtype float32.",
        )
