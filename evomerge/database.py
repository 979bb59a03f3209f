"""The journal of a run in a PostgreSQL database, for file systems whose locks cannot be trusted.

The same records as in :mod:`evomerge.journal`, one a row; the run folder holds a pointer to them
(``journal.url``), the scores of single documents and everything else. Records that belong together
are one transaction: all of them or none. A run has one driver, which holds an advisory lock: the
server frees it when the driver's connection ends, however it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigError, RunFolderError
from evomerge.journal import Batch, Contents

POINTER = "journal.url"
_TABLE = """create table if not exists evomerge_journal (
    run text, number bigint, record text not null, primary key (run, number))"""
_INSERT = """insert into evomerge_journal (run, number, record)
    select %s, %s + n, line from unnest(%s::text[]) with ordinality as lines (line, n)"""
# A lost machine's driver holds its lock for a minute, not for the two hours of TCP's default.
_SESSION = (
    "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3 "
    "-c lock_timeout=2s"
)


def check_url(url: str) -> None:
    """Refuses what is no URL of a database, and passwords: a run folder would spread them.

    Raises:
        ConfigError: With what to write instead.
    """
    if not isinstance(url, str) or not url.startswith(("postgresql://", "postgres://")):
        raise ConfigError(
            f"storage: expected null or postgresql://user@host:port/database, got {url!r}."
        )
    conninfo = _psycopg().conninfo
    try:
        known = conninfo.conninfo_to_dict(url)
    except Exception as e:
        raise ConfigError(f"storage: {str(e).strip()}.") from e
    if known.get("password"):
        raise ConfigError(
            "storage: no password in the URL, since a run folder holds the configuration; put it "
            "into the environment (PGPASSWORD) or into ~/.pgpass."
        )


def read_database(folder: Path) -> Contents:
    """What the journal of a run folder with a pointer says, finished or live.

    Raises:
        RunFolderError: The database does not answer.
    """
    url, run = _pointer(folder)
    with _speaking(folder), _connect(url) as connection:
        return _read(connection, run)[0]


class DatabaseJournal:
    """The writer of a journal in a database; the same interface as ``Journal``.

    Args:
        folder: The run folder, with a pointer or to get one.
        url: The database; None: the pointer's.

    Attributes:
        n_trials: How many the journal holds.

    Raises:
        RunFolderError: Another driver has the run, or the database does not answer.
    """

    def __init__(self, folder: Path, url: str | None) -> None:
        self._folder, self.n_trials, self._end = folder, 0, 0
        self._writer = f"evomerge-{uuid.uuid4()}"
        if (folder / POINTER).is_file():
            known, self._run = _pointer(folder)
            url = url or known
        else:
            self._run = uuid.uuid4().hex
        assert url is not None  # noqa: S101
        with _speaking(folder):
            self._connection = _connect(url)
        try:
            with _speaking(folder):
                self._take_lock()
                self._connection.execute(_TABLE)
            _point(folder, url, self._run)
        except BaseException:
            self.close()
            raise

    def _take_lock(self) -> None:
        errors = _psycopg().errors
        try:
            self._connection.execute(
                "select pg_advisory_lock(hashtextextended(%s, 0))", (self._run,)
            )
        except errors.LockNotAvailable:
            raise RunFolderError(
                f"{self._folder} is in use by another process; a run folder has one driver. Wait "
                "for it, stop it, or choose another run folder (run_dir=...)."
            ) from None

    def read(self) -> Contents:
        """Everything that the journal says."""
        with _speaking(self._folder):
            contents, self._end = _read(self._connection, self._run)
        self.n_trials = len(contents.entries)
        return contents

    def cut(self, at: int) -> Contents:
        """Drops the records from number ``at`` on, and reads again."""
        with _speaking(self._folder):
            self._connection.execute(
                "delete from evomerge_journal where run = %s and number >= %s", (self._run, at)
            )
        return self.read()

    @contextlib.contextmanager
    def writing(self, *, sync: bool = True, along: Sequence[int] = ()) -> Iterator[Batch]:
        """Writes records together: all of them, or none.

        Args:
            sync: Whether they are on the server's disk when this returns.
            along: File descriptors that are synced before.

        Raises:
            RunFolderError: The database does not answer.
        """
        batch = Batch(self._writer, self.n_trials)
        yield batch
        for descriptor in along:
            os.fsync(descriptor)
        lines = [line.decode().rstrip("\n") for line in batch.lines]
        with _speaking(self._folder), self._connection.transaction():
            if not sync:
                self._connection.execute("set local synchronous_commit = off")
            self._connection.execute(_INSERT, (self._run, self._end, lines))
        self._end, self.n_trials = self._end + len(lines), batch.n_trials

    def close(self) -> None:
        """Ends the connection, and so lets another driver have the run."""
        self._connection.close()


def _read(connection: Any, run: str) -> tuple[Contents, int]:
    """(contents, number of the last record)."""
    contents, number = Contents(), 0
    rows = connection.execute(
        "select number, record from evomerge_journal where run = %s order by number", (run,)
    )
    for number, record in rows:
        contents.apply(json.loads(record), number)
    return contents, number


def _pointer(folder: Path) -> tuple[str, str]:
    """(URL, the run's name in the database)."""
    try:
        url, run = (folder / POINTER).read_text().split()
    except ValueError:
        raise RunFolderError(
            f"{folder / POINTER} is damaged; expected a URL and the name of a run."
        ) from None
    return url, run


def _point(folder: Path, url: str, run: str) -> None:
    new = folder / f".{POINTER}"
    with new.open("w") as f:
        f.write(f"{url}\n{run}\n")
        f.flush()
        os.fsync(f.fileno())
    new.replace(folder / POINTER)


def _connect(url: str) -> Any:
    return _psycopg().connect(url, autocommit=True, connect_timeout=10, options=_SESSION)


@contextlib.contextmanager
def _speaking(folder: Path) -> Iterator[None]:
    """What the database may raise, in the user's words."""
    error = _psycopg().Error
    try:
        yield
    except error as e:
        raise RunFolderError(
            f"the database of {folder} does not do its part: {str(e).strip()} Start the same "
            "command again once it does: everything recorded so far is kept."
        ) from e


def _psycopg() -> Any:
    try:
        import psycopg
        import psycopg.conninfo
        import psycopg.errors
    except ImportError as e:
        raise ConfigError(
            "a database as storage is an extra: pip install 'evomerge[postgres]'."
        ) from e
    return psycopg
