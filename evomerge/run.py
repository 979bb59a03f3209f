"""A run as it lies on disk: what reports, exports and warm starts read."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.constraints import Constraints
from evomerge.scale import Scale
from evomerge.trial import Objective, Split, Trial, TrialState


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """Everything that a run folder holds, finished or not.

    Attributes:
        path: The run folder.
        objectives: In declared order, merely reported ones included.
        trials: Finished trials of every kind and split, in told order.
        running: Trials that were started and not finished.
        meta: Plain data written when the run was created. Keys: ``optimizer`` (name), ``seed``,
            ``n_trials`` (budget), ``ended`` (what else ended the search, if anything), ``space``
            ({name, method, dim, names}), ``models`` ({base, experts}: plain ModelRefs),
            ``scalarisation``, ``documents`` ({split: {objective: n}}), ``stock`` ({split: stock
            ``lm_eval`` command line with ``{model}`` for the checkpoint}), ``config`` (the
            resolved configuration), ``fingerprint``, ``created`` (ISO time), ``versions``
            ({package: version}).
    """

    path: Path
    objectives: tuple[Objective, ...]
    trials: tuple[Trial, ...]
    running: tuple[Trial, ...]
    meta: Mapping[str, Any]

    @property
    def searched(self) -> tuple[Objective, ...]:
        """The objectives that the search optimises."""
        return tuple(o for o in self.objectives if o.search)

    @property
    def guiding(self) -> tuple[Objective, ...]:
        """The objectives that the search looks at: optimised ones and constraints."""
        return tuple(o for o in self.objectives if o.guides)

    def complete(self, split: Split = "search") -> list[Trial]:
        """COMPLETE trials of every kind on one split, in told order."""
        return [t for t in self.trials if t.split == split and t.state is TrialState.COMPLETE]

    def scale(self, split: Split = "search") -> Scale:
        """How the searched objectives are normalised on one split."""
        scalarisation = str(self.meta.get("scalarisation") or "mean")
        return Scale.fit(self.searched, self.trials, split, scalarisation)

    def constraints(self, split: Split = "search") -> Constraints:
        """The bounds that a merge must keep, on one split."""
        return Constraints.fit(self.objectives, self.trials, split)

    def stock_command(self, split: Split, model: Path | str) -> str | None:
        """The stock ``lm_eval`` command line that scores a checkpoint on a split, or None."""
        stock = self.meta.get("stock")
        template = stock.get(split) if isinstance(stock, Mapping) else None
        if not template:
            return None
        lines = [template] if isinstance(template, str) else template
        return "\n".join(
            shlex.join(w.replace("{model}", str(model)) for w in shlex.split(line))
            for line in lines
        )
