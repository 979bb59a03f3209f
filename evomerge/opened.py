"""A run in Python: what ``evomerge.open_run`` returns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge import choose, luck, pick, verdict
from evomerge.compare import constraints_of, is_scored, scale_of
from evomerge.recipe import Recipe
from evomerge.run import Run
from evomerge.store import open_run as read_run
from evomerge.trial import SPLITS, Split, Trial

if TYPE_CHECKING:
    import pandas as pd

    from evomerge.constraints import Constraints
    from evomerge.scale import Scale


def open_run(path: Path | str) -> OpenedRun:
    """Opens a run folder, finished or live.

    Args:
        path: The folder, as ``evomerge search`` names it in its first line.

    Returns:
        The run as it stands now; open it again to see what a live one has done since.

    Raises:
        RunFolderError: No run there, or a damaged journal.

    Examples:
        >>> import evomerge
        >>> run = evomerge.open_run(folder)
        >>> run
        OpenedRun(..., 4 search trials)
        >>> len(run.trials) > 4  # the reference points and the finals are there too
        True
    """
    return OpenedRun(read_run(path))


class OpenedRun:
    """A run: its trials as a table, its front, its best merge, its verdict.

    Attributes:
        run: What all of it is read from.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def __repr__(self) -> str:
        n = sum(t.kind == "search" for t in self.run.trials)
        return f"OpenedRun({str(self.run.path)!r}, {n} search trials)"

    @property
    def trials(self) -> pd.DataFrame:
        """Every trial that was started, one row per trial and split, in told order.

        Columns: ``number``, ``kind``, ``split``, ``state``, ``label``; for every objective its raw
        value and, as ``NAME stderr``, the standard error; ``mean`` (normalised), ``feasible``
        (every bound is kept), ``seconds`` (of the worker), ``error``, and for every searched axis
        its coordinate in [0, 1]. What is not known is NaN or empty.

        Examples:
            >>> found = run.trials
            >>> found = found[found.kind == "search"]
            >>> list(found.columns[:7])
            ['number', 'kind', 'split', 'state', 'label', 'toy', 'toy stderr']
            >>> bool((found.toy > 0).all())
            True
        """
        import pandas as pd

        rulers = {s: (scale_of(self.run, s), constraints_of(self.run, s)) for s in SPLITS}
        trials = (*self.run.trials, *self.run.running)
        return pd.DataFrame([self._row(t, *rulers[t.split]) for t in trials])

    def front(self, split: Split = "search") -> pd.DataFrame:
        """The rows of :attr:`trials` that are on the Pareto front.

        Args:
            split: On whose documents.

        Examples:
            >>> front = run.front()
            >>> bool(front.toy.min() == run.trials[run.trials.split == "search"].toy.min())
            True
        """
        numbers = {t.number for t in choose.front(self.run, split)}
        rows = self.trials
        return rows[(rows.split == split) & rows.number.isin(numbers)]

    def best(self) -> Trial:
        """The best merge; the same as ``pick("best")``.

        Examples:
            >>> run.best().recipe.method
            'task_arithmetic'
        """
        return self.pick("best")

    def pick(self, spec: str) -> Trial:
        """The trial that ``evomerge export --pick`` would export.

        Args:
            spec: ``"best"``, ``"knee"``, ``"weights=math:2,code:1"``, ``"math>=95%,code"``,
                ``"trial=17"``; see :func:`evomerge.pick.pick`.

        Raises:
            EvomergeError: A spec that makes no sense, or nothing to pick.

        Examples:
            >>> run.pick("trial=5").number
            5
        """
        return pick.pick(self.run, spec)

    def recipe(self, number: int) -> Recipe:
        """The recipe of a trial, FAILED and RUNNING ones included.

        Raises:
            UnknownNameError: No such trial.

        Examples:
            >>> run.recipe(0).coefficients["weight"].shape  # one layer group, two experts
            (1, 2)
        """
        for trial in (*self.run.trials, *self.run.running):
            if trial.number == number:
                return trial.recipe
        return self.pick(f"trial={number}").recipe  # raises, and says which there are

    @property
    def verdict(self) -> verdict.Verdict:
        """Whether to merge, and what.

        Examples:
            >>> run.verdict.decision in {"merge", "keep", "unclear"}
            True
        """
        return verdict.verdict(self.run)

    @property
    def luck(self) -> luck.Luck | None:
        """How much of the search's gain is expected to be luck, where that can be said.

        Examples:
            >>> run.luck.expected <= run.luck.gain
            True
        """
        return luck.luck(self.run)

    def _row(self, trial: Trial, scale: Scale, bounds: Constraints) -> dict[str, Any]:
        scores = trial.scores
        row: dict[str, Any] = {
            "number": trial.number,
            "kind": trial.kind,
            "split": trial.split,
            "state": str(trial.state),
            "label": trial.label,
        }
        for o in self.run.objectives:
            known = scores is not None and o.name in scores.values
            row[o.name] = o.sign * scores.values[o.name] if scores and known else float("nan")
            row[f"{o.name} stderr"] = scores.stderr.get(o.name) if scores else float("nan")
        scored = scores is not None and is_scored(trial, scale.names)
        row["mean"] = scale.mean(scores.values) if scores and scored else float("nan")
        row["feasible"] = bounds.kept(scores.values) if scores and scored else False
        row["seconds"] = scores.spent if scores else float("nan")
        row["error"] = trial.error or ""
        names = (self.run.meta.get("space") or {}).get("names") or ()
        x = trial.x if trial.x is not None else [float("nan")] * len(names)
        return row | {str(n): float(v) for n, v in zip(names, x, strict=False)}
