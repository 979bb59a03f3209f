"""Which merge method and search space to start from, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from evomerge.diagnose.vectors import Vectors

ALIKE = 0.5
"""Mean cosine from which task vectors count as one direction: half of each one's length along
the others, so that the sum at 1/K each keeps it and the sum at 1 each triples it (K = 3)."""
AGAINST = -0.1
"""Mean cosine below which experts undo each other; unrelated task vectors of a million entries
have 0 +- 0.001."""

UNLIKE = 2.0
"""Largest by smallest movement among the layers of a role from which they are searched one by
one. The zoo's median expert has 1.4."""


@dataclasses.dataclass(frozen=True)
class Advice:
    """Where to start.

    Attributes:
        method: A key of METHODS.
        space: A search space to begin with.
        overrides: More settings for the command line.
        reasons: What in the numbers speaks for it, one sentence each.
        then: What to try next, one sentence each.
    """

    method: str
    space: str
    overrides: tuple[str, ...]
    reasons: tuple[str, ...]
    then: tuple[str, ...]


def advise(vectors: Vectors, kept: Sequence[int], *, rounded: bool) -> Advice:
    """Advice for the experts ``kept`` (columns of ``vectors``).

    Args:
        vectors: The statistics.
        kept: At least one column.
        rounded: Whether rounding turns coefficients into steps.
    """
    reasons, then, overrides = [_angles(vectors, kept)], [], []
    mean = _mean_cosine(vectors, kept)
    if mean <= AGAINST:
        overrides.append("optimizer=nsga2")
    if 1 < len(kept) == len(vectors.names) and mean < ALIKE:
        then.append(
            "Then `equal_norms`, which brings every expert's change to one length; it was ahead "
            "with both seeds that we measured (docs/methods.md)."
        )
    reasons.append(
        "One coefficient per expert finds its optimum in a few dozen trials; with 60 it beat "
        "finer spaces where we measured (docs/zoo.md)."
    )
    spread = _spread(vectors, kept)
    if spread < UNLIKE:
        then.append("Then `blockwise`, warm-started from the first run.")
    else:
        then.append(
            "Then `layerwise`, warm-started from the first run: some layers moved "
            f"{spread:.1f} times as far as others of their role."
        )
    if rounded:
        overrides.append("space.fixed.rounding=dither")
    return Advice("task_arithmetic", "global", tuple(overrides), tuple(reasons), tuple(then))


def _mean_cosine(vectors: Vectors, kept: Sequence[int]) -> float:
    """Over the pairs of experts; 0 where there is one expert alone."""
    n = len(kept)
    pairs = vectors.cosines[np.ix_(kept, kept)][~np.eye(n, dtype=bool)]
    return float(pairs.mean()) if n > 1 else 0.0


def _angles(vectors: Vectors, kept: Sequence[int]) -> str:
    """What the angles between the task vectors mean for the coefficients."""
    n, mean = len(kept), _mean_cosine(vectors, kept)
    if n == 1:
        return "One expert: the search is for how far to go from the base towards it, and beyond."
    if mean >= ALIKE:
        return (
            f"The task vectors point the same way (mean cosine {mean:.2f}): coefficients that "
            f"add up to about 1 keep the common part once; far above, it is counted {n} times."
        )
    if mean <= AGAINST:
        return (
            f"The task vectors pull against each other (mean cosine {mean:.2f}): one expert's "
            "gain is another's loss, so look at the whole trade-off."
        )
    return (
        f"The task vectors mostly go their own ways (mean cosine {mean:.2f}): each can have a "
        "coefficient near what it would have alone, and global coefficients go far."
    )


def _spread(vectors: Vectors, kept: Sequence[int]) -> float:
    """Largest by smallest relative norm among layer groups of one role, the median expert's."""
    spreads = []
    for k in kept:
        worst = 1.0
        for role in {g.role for g in vectors.groups}:
            rows = [g for g, group in enumerate(vectors.groups) if group.role == role]
            values = vectors.relative[rows, k]
            values = values[np.isfinite(values) & (values > 0)]
            if len(values) > 1 and role != "norm":
                worst = max(worst, float(values.max() / values.min()))
        spreads.append(worst)
    return float(np.median(spreads))
