"""TrialStore: every trial, durable before it is told.

A run folder holds one Optuna journal (:mod:`evomerge.journal`) with two studies, ``search`` (every
search and reference trial) and ``finals`` (finalists on the select and test splits), so that
``optuna-dashboard`` and ``optuna.visualization`` work on it, also while it runs; and
``scores/*.npz`` with the scores of single documents, written before the journal speaks of them.
There is no second copy of anything.

* Two writers of a journal are both accepted: ``run.lock`` is held (flock) for the writer's life.
* What is RUNNING is written and not synced: a power cut may take it, and then it was never asked.
* A result is told after its records and its scores were synced, at the same time. A power cut in
  between may keep the record and lose the scores: such results are cut off like a torn line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from evomerge import document_scores
from evomerge.database import POINTER, DatabaseJournal, read_database
from evomerge.errors import RunFolderError
from evomerge.journal import RESULT, Batch, Contents, Journal, State, encode_ranges, read
from evomerge.records import (
    SEARCH,
    attributes_of,
    finished_trials,
    layout_of,
    ours,
    read_layouts,
    result_of,
    running_trials,
)
from evomerge.run import Run
from evomerge.trial import Objective, Trial, TrialState

JOURNAL = "journal.log"
_FINALS = "finals"
_STATES = {
    TrialState.COMPLETE: State.COMPLETE,
    TrialState.PRUNED: State.PRUNED,
    TrialState.FAILED: State.FAIL,
}


class TrialStore:
    """The only writer of a run folder.

    Args:
        folder: The run folder; made where it does not exist.
        objectives: What is scored, merely reported objectives included.
        meta: See :attr:`evomerge.run.Run.meta`. ``meta["fingerprint"]`` is a mapping of everything
            that shapes the search; a folder continues only under an equal one.
        axes: (name, low, high) of every searched axis, for display in Optuna's tools.
        url: A PostgreSQL database for the journal (:mod:`evomerge.database`); None: a file, or
            the database that the folder has.

    Raises:
        RunFolderError: Another driver holds the folder, it belongs to another configuration, or
            its journal is damaged.
    """

    def __init__(
        self,
        folder: Path,
        objectives: Sequence[Objective],
        meta: Mapping[str, Any],
        axes: Sequence[tuple[str, float, float]],
        url: str | None = None,
    ) -> None:
        self.folder = folder
        self.objectives = tuple(objectives)
        self._searched = [o for o in self.objectives if o.search]
        self._axes, self._ranges = tuple(axes), encode_ranges(axes)
        (folder / "scores").mkdir(parents=True, exist_ok=True)
        self._lock: IO[str] | None = None
        self._journal: Journal | DatabaseJournal | None = None
        try:
            self._journal = journal = self._open(url)
            with _readable(folder):
                found = _drop_unsynced(folder, journal, journal.read())
            self._check(found.attrs.get(SEARCH, {}).get("meta", {}), meta)
            self._take(found)
            with _writable(folder):
                self._begin(found, meta)
                self._close_results(found)
        except BaseException:
            self.close()
            raise

    def _open(self, url: str | None) -> Journal | DatabaseJournal:
        """Takes the folder's lock and its journal: a file, or where the pointer points."""
        if url is None and not (self.folder / POINTER).is_file():
            self._lock = _acquire(self.folder)
            return Journal(self.folder / JOURNAL)
        if (self.folder / JOURNAL).is_file():
            raise RunFolderError(
                f"{self.folder} has its journal in a file ({JOURNAL}), which is not moved into a "
                "database. Leave storage out, or choose another run folder (run_dir=...)."
            )
        return DatabaseJournal(self.folder, url)

    def _take(self, found: Contents) -> None:
        """Reads off what is needed to go on."""
        self._ids = {(e.attrs["number"], e.attrs["split"]): e.id for e in ours(found)}
        self._layouts = set(read_layouts(found))
        results = (e.attrs[RESULT]["seq"] for e in ours(found) if RESULT in e.attrs)
        self._seq = 1 + max(results, default=-1)

    def _check(self, found: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        if not found:
            return  # killed before its first record was whole: nothing to contradict
        old = found.get("fingerprint") or {}
        new = json.loads(json.dumps(meta.get("fingerprint") or {}))
        if old == new:
            return
        differ = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
        shown = "; ".join(
            f"{k}: {_short(old.get(k))} there, {_short(new.get(k))} now" for k in differ[:3]
        )
        raise RunFolderError(
            f"{self.folder} belongs to another configuration ({', '.join(differ)} differ: "
            f"{shown}). Choose another run folder (run_dir=...), or repeat the settings that "
            "this one was made with; they are in its config.yaml."
        )

    def _begin(self, found: Contents, meta: Mapping[str, Any]) -> None:
        """Makes the two studies, and writes down what the run is."""
        plain: dict[str, Any] = json.loads(json.dumps(dict(meta)))
        plain["objectives"] = [dataclasses.asdict(o) for o in self.objectives]
        old = found.attrs.get(SEARCH, {}).get("meta", {})
        plain |= {k: old[k] for k in ("created", "finished", "note", "ended") if k in old}
        names = (*found.studies, *(n for n in (SEARCH, _FINALS) if n not in found.studies))
        self._studies = {name: i for i, name in enumerate(names)}
        with self._writing() as batch:
            for name, index in self._studies.items():
                if name not in found.studies:
                    batch.create_study(name, [o.direction for o in self._searched])
                if name not in found.titled and name in {SEARCH, _FINALS}:
                    batch.set_metric_names(index, [o.name for o in self._searched])
            if old != plain:
                batch.set_study_attr(self._studies[SEARCH], "meta", plain)
        self._meta = plain

    def _close_results(self, found: Contents) -> None:
        """Ends, for Optuna, trials whose result was recorded just before their driver died."""
        left = [e for e in ours(found) if RESULT in e.attrs and not e.closed]
        if left:
            with self._writing() as batch:
                for entry in left:
                    self._end(batch, entry.id, entry.attrs[RESULT])

    @property
    def _writing(self) -> Any:
        assert self._journal is not None  # noqa: S101
        return self._journal.writing

    @property
    def meta(self) -> dict[str, Any]:
        """Plain data of the run, as it was last written."""
        return dict(self._meta)

    def update_meta(self, **changes: Any) -> None:
        """Changes plain data of the run that does not shape the search."""
        meta = json.loads(json.dumps(self._meta | changes))
        if meta != self._meta:
            with _writable(self.folder), self._writing() as batch:
                batch.set_study_attr(self._studies[SEARCH], "meta", meta)
            self._meta = meta

    def start(self, trial: Trial) -> None:
        """Records a RUNNING trial; a trial known already is recorded as another attempt.

        Raises:
            RunFolderError: The folder cannot be written (a full disk).
        """
        key = (trial.number, trial.split)
        with _writable(self.folder), self._writing(sync=False) as batch:
            if key in self._ids:
                batch.set_trial_attr(self._ids[key], "attempt", trial.attempt)
                return
            added = self._create(batch, trial)
        self._ids[key] = added

    def append(self, *trials: Trial) -> None:
        """Records finished trials; durable when this returns.

        Args:
            trials: In the order in which they will be told. Together they cost what one costs:
                the disk is waited for once.

        Raises:
            ValueError: A trial is RUNNING.
            RunFolderError: The folder cannot be written (a full disk).
        """
        for trial in trials:
            if not trial.finished:
                raise ValueError(f"{trial.name} is still RUNNING; use start() for it.")
        if not trials:
            return
        with _writable(self.folder), contextlib.ExitStack() as files:
            scores = [
                files.enter_context(f)
                for t in trials
                for f in document_scores.write(self.folder, t)
            ]
            with self._writing(along=[f.fileno() for f in scores]) as batch:
                added = {}
                for i, trial in enumerate(trials):
                    key = (trial.number, trial.split)
                    if key not in self._ids:
                        added[key] = self._create(batch, trial)
                    result = result_of(trial, self._seq + i)
                    index = self._ids[key] if key in self._ids else added[key]
                    batch.set_trial_attr(index, RESULT, result)
                    self._end(batch, index, result)
        self._ids |= added
        self._seq += len(trials)

    def _end(self, batch: Batch, index: int, result: Mapping[str, Any]) -> None:
        state = TrialState(result["state"])
        values = None
        if state is TrialState.COMPLETE:
            values = [o.sign * result["values"][o.name] for o in self._searched]
        batch.close_trial(index, _STATES[state], values)

    def _create(self, batch: Batch, trial: Trial) -> int:
        """Records a RUNNING trial, and its layout where that is new; the trial's id."""
        recipe = trial.recipe
        key, layout = layout_of(recipe.models, recipe.base, recipe.groups, recipe.tokenizer)
        if key not in self._layouts:
            batch.set_study_attr(self._studies[SEARCH], f"layout:{key}", layout)
            self._layouts.add(key)
        params = {}
        if trial.x is not None:
            for (axis, low, high), x in zip(self._axes, trial.x.tolist(), strict=True):
                params[axis] = min(max(low + x * (high - low), low), high)
        attrs = attributes_of(trial, key)
        study = self._studies[SEARCH if trial.split == "search" else _FINALS]
        return batch.create_trial(study, attrs, params, self._ranges if params else "{}")

    def load(self) -> list[Trial]:
        """Finished trials of every split in told order, then those left RUNNING."""
        found = _read_journal(self.folder)
        return [*finished_trials(found, self.folder), *running_trials(found)]

    def close(self) -> None:
        """Lets another driver have the folder."""
        if self._journal is not None:
            self._journal.close()
        if self._lock is not None:
            self._lock.close()


def is_run(folder: Path) -> bool:
    """Whether a folder is one that a search made."""
    return (folder / JOURNAL).is_file() or (folder / POINTER).is_file()


def open_run(path: Path | str) -> Run:
    """Reads a run folder, finished or live, without locking it.

    Raises:
        RunFolderError: No run there, or a damaged journal.
    """
    folder = Path(path)
    if not is_run(folder):
        raise RunFolderError(
            f"{folder} is no run folder: it has no {JOURNAL}. Run folders are made by "
            "`evomerge search`, by default below runs/."
        )
    with _readable(folder):
        found = _read_journal(folder)
    meta = found.attrs.get(SEARCH, {}).get("meta")
    if not meta:
        raise RunFolderError(f"{folder} holds nothing yet: its search has only just begun.")
    return Run(
        path=folder,
        objectives=tuple(Objective(**o) for o in meta["objectives"]),
        trials=tuple(finished_trials(found, folder)),
        running=tuple(running_trials(found)),
        meta=meta,
    )


def _read_journal(folder: Path) -> Contents:
    if (folder / POINTER).is_file():
        return read_database(folder)
    return read(folder / JOURNAL)


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """What reading may raise, in the user's words."""
    try:
        yield
    except ValueError as e:
        raise RunFolderError(
            f"{folder / JOURNAL} is damaged ({e}); restore it from a copy, or start a new run."
        ) from e


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """What writing may raise, in the user's words."""
    try:
        yield
    except OSError as e:
        raise RunFolderError(
            f"cannot write to {folder}: {e}. Free some space and start the same command "
            "again: everything recorded so far is kept."
        ) from e


def _acquire(folder: Path) -> IO[str]:
    handle = (folder / "run.lock").open("a+")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.seek(0)
        holder = handle.read().strip() or "another process"
        handle.close()
        raise RunFolderError(
            f"{folder} is in use by {holder}; a run folder has one driver. Wait for it, stop it, "
            "or choose another run folder (run_dir=...)."
        ) from None
    handle.truncate(0)
    handle.write(f"process {os.getpid()} on {socket.gethostname()}")
    handle.flush()
    return handle


def _drop_unsynced(folder: Path, journal: Journal | DatabaseJournal, found: Contents) -> Contents:
    """Cuts off results whose scores a power cut took: nobody was told of them.

    Only the last group that was written can be such; what came after it proves that it was synced.
    """
    for at, entry in found.tail:
        if entry.attrs[RESULT].get("arrays") and not document_scores.kept(
            folder, entry.attrs["number"], entry.attrs["split"]
        ):
            return journal.cut(at)
    return found


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
