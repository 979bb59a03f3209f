"""How much of the gain was luck: the lead over the best single model, split by split.

The search has seen its documents and picked the highest scores on them, so they flatter the winner
(the winner's curse). The select and test documents know nothing of the search.
"""

from __future__ import annotations

import dataclasses
import math

from evomerge.choose import is_single
from evomerge.compare import Difference, is_scored, paired_mean, scale_of
from evomerge.run import Run
from evomerge.trial import SPLITS, Split, Trial
from evomerge.verdict import Verdict


@dataclasses.dataclass(frozen=True)
class Lead:
    """One merge against the rival on every split where both were scored.

    Attributes:
        trial: The merge, as scored on ``search``.
        on: Split to the paired difference in mean normalised score.
    """

    trial: Trial
    on: dict[Split, Difference]

    @property
    def luck(self) -> float:
        """Lead on the search documents minus lead on the last held-out ones; NaN: not known."""
        held_out = [self.on[s].mean for s in ("test", "select") if s in self.on]
        return (
            self.on["search"].mean - held_out[0] if "search" in self.on and held_out else math.nan
        )


def leads(run: Run, answer: Verdict) -> list[Lead]:
    """The finalists against the verdict's rival, the best on the last split first.

    Args:
        run: Any run, finished or not.
        answer: Its verdict.

    Returns:
        One entry per merge that was scored on the search documents and again on others; none
        before that.
    """
    if answer.rival is None:
        return []
    scored: dict[Split, dict[int, Trial]] = {}
    for split in SPLITS:
        names = scale_of(run, split).names
        scored[split] = {t.number: t for t in run.complete(split) if is_scored(t, names)}
    rival = answer.rival.number
    made = []
    for number, trial in scored["search"].items():
        held_out = number in scored["select"] or number in scored["test"]
        if is_single(trial) or not held_out:
            continue
        on = {
            split: paired_mean(scored[split][number], scored[split][rival], scale_of(run, split))
            for split in SPLITS
            if number in scored[split] and rival in scored[split]
        }
        if len(on) > 1:
            made.append(Lead(trial, on))
    return sorted(made, key=lambda lead: -list(lead.on.values())[-1].mean)
