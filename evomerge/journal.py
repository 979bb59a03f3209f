"""The journal of a run: Optuna's file format, written and read in one piece.

The format is that of ``optuna.storages.JournalStorage`` (one JSON record a line, 5.0), so that
``optuna-dashboard`` and ``optuna.visualization`` open it; its records are few enough to be written
here. Optuna's own writer pays one fsync per record and keeps every trial with a distribution per
axis in memory: 18 ms a trial instead of 3 (24 axes, a disk whose fsync takes 4 ms), growing with
the number of trials.

Where a driver is killed, the file is a prefix of what it wrote. Where the machine loses power, it
is a prefix that holds everything that was synced.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import enum
import json
import os
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

RESULT = "result"
"""Attribute of a trial that is finished; whatever else follows is a courtesy to Optuna."""


class Operation(enum.IntEnum):
    """``optuna.storages.journal._storage.JournalOperation``, as far as we write or heed it."""

    CREATE_STUDY = 0
    STUDY_ATTR = 2
    STUDY_SYSTEM_ATTR = 3
    CREATE_TRIAL = 4
    TRIAL_STATE = 6
    TRIAL_ATTR = 8


class State(enum.IntEnum):
    """``optuna.trial.TrialState``."""

    RUNNING = 0
    COMPLETE = 1
    PRUNED = 2
    FAIL = 3


_CLOSED = frozenset({State.COMPLETE, State.PRUNED, State.FAIL})


@dataclasses.dataclass
class Entry:
    """A trial as the journal has it.

    Attributes:
        id: Its place among the trials of all studies.
        study: Name of its study.
        attrs: Optuna's user attributes.
        closed: Whether Optuna counts it as finished.
    """

    id: int
    study: str
    attrs: dict[str, Any]
    closed: bool


@dataclasses.dataclass
class Contents:
    """What a journal says.

    Attributes:
        studies: Name to id.
        attrs: Study name to its user attributes.
        titled: Names of the studies whose values have names.
        entries: All trials, by id.
        tail: (byte, entry) of the results after which nothing but results follows: only the last
            group that was written can be among them.
    """

    studies: dict[str, int] = dataclasses.field(default_factory=dict)
    attrs: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    titled: set[str] = dataclasses.field(default_factory=set)
    entries: list[Entry] = dataclasses.field(default_factory=list)
    tail: list[tuple[int, Entry]] = dataclasses.field(default_factory=list)

    def apply(self, record: Mapping[str, Any], at: int) -> None:
        """Takes one record that begins at byte ``at``."""
        operation = record["op_code"]
        if operation == Operation.TRIAL_STATE:
            self.entries[record["trial_id"]].closed |= record["state"] in _CLOSED
            return
        if operation == Operation.TRIAL_ATTR:
            entry = self.entries[record["trial_id"]]
            if not entry.closed:
                entry.attrs.update(record["user_attr"])
            if RESULT in record["user_attr"]:
                self.tail.append((at, entry))
                return
        elif operation == Operation.CREATE_TRIAL:
            attrs, closed = dict(record.get("user_attrs") or {}), record.get("state") in _CLOSED
            self.entries.append(Entry(len(self.entries), self._name(record), attrs, closed))
        elif operation == Operation.CREATE_STUDY and record["study_name"] not in self.studies:
            self.studies[record["study_name"]] = len(self.studies)
            self.attrs[record["study_name"]] = {}
        elif operation == Operation.STUDY_ATTR:
            self.attrs[self._name(record)].update(record["user_attr"])
        elif (
            operation == Operation.STUDY_SYSTEM_ATTR
            and "study:metric_names" in record["system_attr"]
        ):
            self.titled.add(self._name(record))
        self.tail.clear()

    def _name(self, record: Mapping[str, Any]) -> str:
        name: str = list(self.studies)[record["study_id"]]
        return name


def read(path: Path) -> Contents:
    """Reads a journal, finished or live: a torn last line is one that is being written.

    Raises:
        ValueError: A line in the middle is no record.
    """
    contents, at = Contents(), 0
    with path.open("rb") as f:
        for line in f:
            if not line.endswith(b"\n"):
                break
            try:
                contents.apply(json.loads(line), at)
            except (LookupError, TypeError, ValueError) as e:
                raise ValueError(f"byte {at}: {type(e).__name__}: {e}") from e
            at += len(line)
    return contents


def _repair(path: Path) -> None:
    """Cuts a torn last line off and removes the lock of a dead writer.

    Appending after a torn line would lose the record that is appended; a stale lock costs 30 s.
    """
    for lock in path.parent.glob(f"{path.name}.lock*"):
        with contextlib.suppress(FileNotFoundError):
            lock.unlink()
    with path.open("r+b") as f:
        end = f.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            f.seek(start)
            cut = f.read(end - start).rfind(b"\n")
            if cut >= 0:
                f.truncate(start + cut + 1)
                return
            end = start
        f.truncate(0)


class Journal:
    """The writer of a journal, under the lock that Optuna's own tools take.

    Args:
        path: The file; made where it does not exist, and repaired where its writer was killed.

    Attributes:
        n_trials: How many the file holds, those of other writers included.
    """

    def __init__(self, path: Path) -> None:
        from optuna.storages.journal import JournalFileOpenLock

        self._path = path
        path.touch()
        _repair(path)
        self._writer = f"evomerge-{uuid.uuid4()}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._lock = JournalFileOpenLock(str(path))
        self._size, self.n_trials = 0, 0
        self._syncing = ThreadPoolExecutor(4, thread_name_prefix="evomerge-sync")

    def read(self) -> Contents:
        """Everything that the file says."""
        contents = read(self._path)
        self._size, self.n_trials = self._path.stat().st_size, len(contents.entries)
        return contents

    def cut(self, at: int) -> Contents:
        """Drops everything from byte ``at``, and reads again."""
        os.truncate(self._path, at)
        return self.read()

    @contextlib.contextmanager
    def writing(self, *, sync: bool = True, along: Sequence[int] = ()) -> Iterator[Batch]:
        """Writes records together: all of them, or a prefix where the driver dies in here.

        Args:
            sync: Whether they are on the disk when this returns; else only safe from the
                driver's death, until the next records that are synced.
            along: File descriptors to be synced at the same time, which costs nearly nothing.

        Raises:
            OSError: The disk is full; nothing was written.
        """
        self._lock.acquire()
        try:
            self._catch_up()
            batch = Batch(self._writer, self.n_trials)
            yield batch
            data = b"".join(batch.lines)
            self._write(data)
            self._size, self.n_trials = self._size + len(data), batch.n_trials
        finally:
            self._lock.release()
        if sync:
            self._sync(along)

    def _catch_up(self) -> None:
        """Counts what another writer (a note taken in the dashboard) has appended."""
        if self._path.stat().st_size == self._size:
            return
        with self._path.open("rb") as f:
            f.seek(self._size)
            for line in f:
                self.n_trials += json.loads(line)["op_code"] == Operation.CREATE_TRIAL
                self._size += len(line)

    def _write(self, data: bytes) -> None:
        """Appends; where that fails in the middle, the file is as it was."""
        with self._path.open("ab", buffering=0) as f:
            try:
                while data:  # a full disk takes what fits, and says so the next time
                    data = data[f.write(data) :]
            except OSError:
                f.truncate(self._size)
                raise

    def _sync(self, along: Sequence[int]) -> None:
        """Syncs the file and others: at once, since the disk then has one thing to wait for."""
        others = [self._syncing.submit(os.fsync, fd) for fd in along]
        fd = os.open(self._path, os.O_WRONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        for other in others:
            other.result()

    def close(self) -> None:
        """Ends the threads that sync."""
        self._syncing.shutdown()


class Batch:
    """Records that are written together.

    Args:
        writer: Optuna's ``worker_id``: tells a writer's own records from others'.
        n_trials: How many trials the journal holds.

    Attributes:
        lines: The records so far.
        n_trials: With those created here.
    """

    def __init__(self, writer: str, n_trials: int) -> None:
        self._writer, self.n_trials = writer, n_trials
        self.lines: list[bytes] = []

    def create_study(self, name: str, directions: Sequence[str]) -> None:
        """A study; a direction is ``"minimize"`` or ``"maximize"``."""
        codes = [1 + (d == "maximize") for d in directions]
        self._add(Operation.CREATE_STUDY, study_name=name, directions=codes)

    def set_metric_names(self, study: int, names: Sequence[str]) -> None:
        """What the values of a study are called."""
        attr = {"study:metric_names": list(names)}
        self._add(Operation.STUDY_SYSTEM_ATTR, study_id=study, system_attr=attr)

    def set_study_attr(self, study: int, key: str, value: Any) -> None:
        """Plain data of a study."""
        self._add(Operation.STUDY_ATTR, study_id=study, user_attr={key: value})

    def create_trial(
        self, study: int, attrs: Mapping[str, Any], params: Mapping[str, float], ranges: str
    ) -> int:
        """A RUNNING trial.

        Args:
            study: Its study's id.
            attrs: Plain data.
            params: Axis to value.
            ranges: What :func:`encode_ranges` made of the same axes: the same for every trial, and
                most of the record.

        Returns:
            Its id.
        """
        self._add(
            Operation.CREATE_TRIAL,
            study_id=study,
            datetime_start=_now(),
            state=State.RUNNING,
            value=None,
            values=None,
            params=params,
            user_attrs=attrs,
            system_attrs={},
            intermediate_values={},
        )
        self.lines[-1] = self.lines[-1][:-2] + f',"distributions":{ranges}}}\n'.encode()
        self.n_trials += 1
        return self.n_trials - 1

    def set_trial_attr(self, trial: int, key: str, value: Any) -> None:
        """Plain data of a trial."""
        self._add(Operation.TRIAL_ATTR, trial_id=trial, user_attr={key: value})

    def close_trial(self, trial: int, state: State, values: Sequence[float] | None) -> None:
        """The end of a trial; Optuna takes no record of it after this one."""
        self._add(
            Operation.TRIAL_STATE,
            trial_id=trial,
            state=state,
            values=values,
            datetime_complete=_now(),
        )

    def _add(self, operation: Operation, **fields: Any) -> None:
        record = {"op_code": operation, "worker_id": self._writer, **fields}
        self.lines.append(json.dumps(record, separators=(",", ":")).encode() + b"\n")


def encode_ranges(axes: Iterable[tuple[str, float, float]]) -> str:
    """JSON of ``{axis: its optuna.distributions.FloatDistribution}``, of (name, low, high)."""
    distributions = {
        name: json.dumps(
            {
                "name": "FloatDistribution",
                "attributes": {"step": None, "low": low, "high": high, "log": False},
            }
        )
        for name, low, high in axes
    }
    return json.dumps(distributions, separators=(",", ":"))


def _now() -> str:
    return datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="microseconds")
