"""A PostgreSQL server of the tests' own, on a socket in a temporary folder."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


def binary(name: str) -> str:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    path = shutil.which(name) or (str(found[-1]) if found else None)
    if path is None:
        pytest.skip(f"PostgreSQL is not installed: no {name}")
    return path


class Server:
    """Started by :func:`server`.

    Attributes:
        url: For ``storage=``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._data = folder, folder / "data"
        self.url = f"postgresql://postgres@/postgres?host={folder}"
        # the server refuses to run as root
        names = [n for n in ("postgres", "nobody") if os.geteuid() == 0]
        known = {p.pw_name: p for p in pwd.getpwall()}
        self._user = next((known[n] for n in names if n in known), None)
        if self._user is not None:
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)
        self._run("initdb", "-D", self._data, "-U", "postgres", "--auth=trust", "--no-sync")

    def _run(self, name: str, *arguments: object) -> None:
        user = {} if self._user is None else {"user": self._user.pw_uid, "extra_groups": []}
        done = subprocess.run(
            [binary(name), *map(str, arguments)],
            cwd=self._folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **user,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout

    def start(self) -> None:
        settings = f"-c listen_addresses='' -k {self._folder}"
        log = self._folder / "log"
        self._run("pg_ctl", "-D", self._data, "-l", log, "-o", settings, "-w", "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self._data, "-m", "immediate", "-w", "stop")


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """A running server; skips where there is none to start."""
    pytest.importorskip(
        "psycopg", reason="psycopg is not installed: pip install evomerge[postgres]"
    )
    binary("initdb"), binary("pg_ctl")
    with tempfile.TemporaryDirectory(prefix="evomerge-pg-", ignore_cleanup_errors=True) as name:
        found = Server(Path(name))
        found.start()
        try:
            yield found
        finally:
            found.stop()
