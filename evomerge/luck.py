"""The winner's curse: how much of a search's gain is luck.

The best of many noisy scores is too good on average: it won partly because its documents happened
to suit it. The size of that is estimated by the bootstrap of the choice: draw the search documents
again with replacement, choose the best merge on the drawn ones, and see by how much it is better
there than on the documents as they are. That difference, the optimism, is on average what the
choice on the real documents flatters its winner by (Efron 1983, "Estimating the error rate of a
prediction rule"; Harrell, Lee & Mark 1996, section 4.4). All merges meet the same drawn
documents, so what they share (hard documents) drops out, and so does the trials' own likeness.

The rival, the best of the single models on the same documents, is flattered in the same way,
which makes the lead too small; the same draws say by how much.

It errs on the side of too little, since scores lie further apart than the merges themselves do;
what the search as a whole adapted to its documents is in no trial's scores. So what the select
and test documents say goes first, where they were scored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from evomerge.choose import feasible, is_single, merges, ranked
from evomerge.compare import constraints_of, is_scored, scale_of
from evomerge.recipe import Matrix
from evomerge.run import Run
from evomerge.scale import Scale
from evomerge.trial import Trial

_DRAWS = 500
"""Bootstrap draws: the mean optimism is then known to a tenth of its own spread or better."""


@dataclasses.dataclass(frozen=True)
class Luck:
    """What the search saw of its best merge, and what of that is to be expected elsewhere.

    Attributes:
        trial: The best merge on the search documents.
        rival: The best single model there.
        gain: Their difference in mean normalised score on the search documents.
        luck: The part of it that choosing both on them is expected to have added; >= 0.
        flattery: By how much the merge's own score is expected to be too good; >= 0.
        n_candidates: Merges that were chosen among.
        n_documents: Search documents, of all tasks.
    """

    trial: Trial
    rival: Trial
    gain: float
    luck: float
    flattery: float
    n_candidates: int
    n_documents: int

    @property
    def expected(self) -> float:
        """The gain to expect on other documents."""
        return self.gain - self.luck

    @property
    def sentence(self) -> str:
        """One sentence for the user."""
        return (
            f"Of the search's gain of {self.gain:.3f} ({self.trial.name} over {self.rival.name}), "
            f"{self.luck:.3f} is expected to be luck, from choosing the best of "
            f"{self.n_candidates} on {self.n_documents:,} documents: expect {self.expected:.3f} "
            "on others."
        )


def luck(run: Run, seed: int = 0) -> Luck | None:
    """How much of the search's gain is expected to be luck.

    Args:
        run: Any run, finished or not.
        seed: Of the draws; the same run and seed give the same answer.

    Returns:
        The estimate, or None where it cannot be made: no merge or no single model was scored, or
        an objective has no scores per document.
    """
    scale, bounds = scale_of(run, "search"), constraints_of(run, "search")
    scored = [t for t in merges(run) if is_scored(t, scale.names)]
    candidates = ranked(feasible(scored, bounds), scale)
    singles = ranked([t for t in run.complete("search") if is_single(t)], scale)
    if not candidates or not singles:
        return None
    rival = singles[0]
    rows = [_rows([*candidates, *singles], name) for name in scale.names]
    if any(r is None for r in rows):
        return None
    tables = [r for r in rows if r is not None]
    rng = np.random.default_rng(seed)
    seen = np.stack([_means(r, np.ones((r.shape[1], 1))) for r in tables], axis=-1)
    drawn = np.stack([_means(r, _draws(r.shape[1], rng)) for r in tables], axis=-1)
    best, k = candidates[0], len(candidates)
    merge, single = (_flattery(seen, drawn, at, k, scale) for at in (slice(k), slice(k, None)))
    gain = scale.mean(_values(best)) - scale.mean(_values(rival))
    n = sum(r.shape[1] for r in tables)
    return Luck(best, rival, gain, max(0.0, merge - single), max(0.0, merge), k, n)


def _flattery(
    seen: npt.NDArray[np.float64],
    drawn: npt.NDArray[np.float64],
    among: slice,
    anchor: int,
    scale: Scale,
) -> float:
    """By how much the best on drawn documents is better there than on the documents as they are.

    Args:
        seen: (models, 1, m) means on the documents.
        drawn: (models, draws, m) the same on drawn ones.
        among: The models that are chosen among.
        anchor: One model whose own difference, 0 on average, is taken off: less noise.
        scale: How the m objectives become one number.
    """
    chosen = scale.scalars((drawn[among] - scale.zero) / scale.unit).argmax(axis=0)
    gap = (drawn - seen) @ (np.array(scale.weights) / np.array(scale.unit))  # (models, draws)
    return float((gap[among][chosen, np.arange(len(chosen))] - gap[anchor]).mean())


def _rows(trials: Sequence[Trial], name: str) -> Matrix | None:
    """(n, documents) signed values of one objective, NaN where not asked; None: not known."""
    found = [t.scores.per_example.get(name) if t.scores else None for t in trials]
    rows = [r for r in found if r is not None]
    if len(rows) < len(trials) or len({len(r) for r in rows}) != 1:
        return None
    return np.array(rows, dtype=np.float64)


def _draws(n: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """(n, draws): how often each document was drawn."""
    return rng.multinomial(n, np.full(n, 1 / n), size=_DRAWS).T.astype(np.float64)


def _means(rows: Matrix, times: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(n, draws): the mean over the documents that were asked, each counted so many times."""
    asked = np.isfinite(rows)
    count = asked.astype(np.float64) @ times
    total: npt.NDArray[np.float64] = np.where(asked, rows, 0.0) @ times
    return total / np.maximum(count, 1.0)


def _values(trial: Trial) -> dict[str, float]:
    return dict(trial.scores.values) if trial.scores else {}
