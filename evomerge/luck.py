"""The winner's curse: how much of a search's gain is luck.

The best of many noisy scores is too good on average: it won partly because its documents happened
to suit it. A search does more than choose the best in the end: step by step it follows what its
documents like, so that all its later candidates suit them too well, and drawing the documents
again and choosing anew among the candidates (the bootstrap, which this was before) saw a third of
it where scores are hits and misses (docs/zoo.md).

What holds whatever the search did is a conditional expectation (Dawid 1994, "Selection paradoxes
of Bayesian inference"): of merges whose true scores lie about that of the reference merges, fixed
before the search, with variance t^2, one that was seen ``gap`` above them with a standard error e
is expected to owe ``gap e^2 / (t^2 + e^2)`` of it to its documents. t^2 is what the candidates'
gaps spread beyond their errors: empirical Bayes (Efron & Morris 1975, "Data analysis using Stein's
estimator and its generalizations"). Gaps are paired, document by document,
so hard documents drop out.

The rival, the best of the single models on the same documents, is flattered in the same way about
the mean of these, which makes the lead too small.

An estimate from the search documents alone stays one: what the select and test documents say goes
first, where they were scored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from evomerge.choose import feasible, is_reference, is_single, merges, ranked
from evomerge.compare import constraints_of, is_scored, scale_of
from evomerge.recipe import Matrix
from evomerge.run import Run
from evomerge.trial import Trial


@dataclasses.dataclass(frozen=True)
class Luck:
    """What the search saw of its best merge, and what of that is to be expected elsewhere.

    Attributes:
        trial: The best merge on the search documents.
        rival: The best single model there.
        gain: Their difference in mean normalised score on the search documents.
        luck: The part of it that these documents are expected to have added; >= 0.
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


def luck(run: Run) -> Luck | None:
    """How much of the search's gain is expected to be luck.

    Args:
        run: Any run, finished or not.

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
    weights = [w / u for w, u in zip(scale.weights, scale.unit, strict=True)]
    best, k = candidates[0], len(candidates)
    fixed = [i for i, t in enumerate(candidates) if is_reference(t)]
    merge = _flattery([w * r[:k] for w, r in zip(weights, tables, strict=True)], fixed)
    single = _flattery([w * r[k:] for w, r in zip(weights, tables, strict=True)], [])
    gain = scale.mean(_values(best)) - scale.mean(_values(rival))
    n = sum(r.shape[1] for r in tables)
    return Luck(best, rival, gain, max(0.0, merge - single), max(0.0, merge), k, n)


def _flattery(tables: Sequence[Matrix], fixed: Sequence[int]) -> float:
    """What the first model's mean score is expected to owe to its documents.

    Args:
        tables: (n, documents) weighted scores of each objective, NaN where not asked.
        fixed: Models that were there before the search: true scores lie about their mean; about
            that of all models where there are none.
    """
    among = list(fixed) or list(range(len(tables[0])))
    searched = [i for i in range(len(tables[0])) if i not in fixed] or among
    gaps, errors = np.zeros((2, len(tables[0])))
    for table in tables:
        about = np.where(np.isfinite(table[among]).all(axis=0), table[among].mean(axis=0), np.nan)
        differences = table - about
        asked = np.isfinite(differences).sum(axis=1)
        if (asked < 2).any():  # their spread is not known
            return 0.0
        gaps += np.nanmean(differences, axis=1)
        errors += np.nanvar(differences, axis=1, ddof=1) / asked
    spread = max(0.0, float((gaps**2 - errors)[searched].mean()))
    return float(gaps[0] * errors[0] / (spread + errors[0])) if errors[0] > 0 else 0.0


def _rows(trials: Sequence[Trial], name: str) -> Matrix | None:
    """(n, documents) signed values of one objective, NaN where not asked; None: not known."""
    found = [t.scores.per_example.get(name) if t.scores else None for t in trials]
    rows = [r for r in found if r is not None]
    if len(rows) < len(trials) or len({len(r) for r in rows}) != 1:
        return None
    return np.array(rows, dtype=np.float64)


def _values(trial: Trial) -> dict[str, float]:
    return dict(trial.scores.values) if trial.scores else {}
