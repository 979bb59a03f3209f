"""A disk under the real store that kills its driver between, or in the middle of, two writes."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from evomerge import document_scores, store
from evomerge.journal import Journal

RECORD = b'"user_attr":{"result":'
HOWS = ("before", "torn", "after", "power", "full")


class DriverDeath(BaseException):
    """kill -9: nothing may catch it."""


@dataclasses.dataclass
class Disk:
    """Counts what the store does to the disk, and ends the driver at one of these operations.

    An operation is one write of records, one file of scores, or one sync. ``before`` and ``after``
    kill the driver there, ``torn`` after some bytes; ``power`` also takes what was not synced;
    ``full`` raises ENOSPC after some bytes, as a full disk does.

    Attributes:
        rng: Decides how much of a write is kept.
        syncs: Whether to really sync.
        dies_at: Operation of this sitting that is the driver's last one; None: it lives.
        how: One of :data:`HOWS`.
        operations: Of this sitting.
        synced: Bytes of the journal that a power cut cannot take.
        results: Results among them.
    """

    rng: random.Random
    syncs: bool = False
    dies_at: int | None = None
    how: str = "before"
    operations: int = 0
    synced: int = 0
    results: int = 0
    loose: list[Path] = dataclasses.field(default_factory=list)

    def arm(self, folder: Path, dies_at: int | None, how: str) -> None:
        """A new sitting: what lies on the disk has long been synced."""
        self.dies_at, self.how, self.operations = dies_at, how, 0
        self.loose.clear()
        self._mark(folder / store.JOURNAL)

    def _mark(self, journal: Path) -> None:
        data = journal.read_bytes() if journal.exists() else b""
        self.synced, self.results = len(data), data[: data.rfind(b"\n") + 1].count(RECORD)

    @contextlib.contextmanager
    def operation(self, file: Path, journal: Path) -> Iterator[None]:
        """One operation, which may be the last; ``file`` is what it changes."""
        last = self.operations == self.dies_at
        self.operations += 1
        if last and self.how == "before":
            raise DriverDeath
        if last and self.how == "full" and file == journal:
            raise OSError(28, "No space left on device")  # what was written is taken back
        size = file.stat().st_size if file.exists() else 0
        yield
        if not last:
            return
        grown = file.stat().st_size - size
        if self.how in {"torn", "full"} and grown > 0:
            with file.open("r+b") as f:
                f.truncate(size + self.rng.randrange(grown))
        if self.how == "power":
            self.cut_power(journal)
        if self.how == "full":
            raise OSError(28, "No space left on device")
        raise DriverDeath

    def cut_power(self, journal: Path) -> None:
        """Takes any part of what was not synced: the journal's end, scores in part or whole."""
        if journal.exists():
            end = self.rng.randint(
                min(self.synced, journal.stat().st_size), journal.stat().st_size
            )
            with journal.open("r+b") as f:
                f.truncate(end)
        for file in self.loose:
            if self.rng.random() < 0.5:
                with file.open("r+b") as f:
                    f.truncate(self.rng.randrange(2) * self.rng.randrange(file.stat().st_size))


@contextlib.contextmanager
def under(disk: Disk) -> Iterator[None]:
    """Puts the store on this disk."""

    class MortalJournal(Journal):
        def _write(self, data: bytes) -> None:
            with disk.operation(self._path, self._path):
                super()._write(data)

        def _sync(self, along) -> None:
            with disk.operation(self._path, self._path):
                if disk.syncs:
                    super()._sync(along)
                disk.loose.clear()
                disk._mark(self._path)

    write_scores = document_scores.write

    def mortal_scores(folder, trial):
        path = document_scores.path_of(folder, trial.number, trial.split)
        for f in write_scores(folder, trial):
            with disk.operation(path, folder / store.JOURNAL):
                disk.loose.append(path)
            yield f

    with (
        mock.patch.object(store, "Journal", MortalJournal),
        mock.patch.object(document_scores, "write", mortal_scores),
    ):
        yield
