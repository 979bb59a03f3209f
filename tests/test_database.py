"""A run whose journal is in a real PostgreSQL, which the tests start."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from evomerge.database import POINTER, check_url
from evomerge.errors import ConfigError, RunFolderError
from evomerge.report.many import run_folders
from evomerge.store import JOURNAL, TrialStore, open_run
from tests.fakes import AXES, OBJECTIVES, FakeExecutor
from tests.postgres import Server, server
from tests.test_study import build, key, run


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    with server() as found:
        yield found


def records(url: str) -> list[dict]:
    import psycopg

    with psycopg.connect(url) as connection:
        rows = connection.execute("select record from evomerge_journal order by run, number")
        return [json.loads(record) for (record,) in rows]


def test_a_run_is_the_same_as_in_a_file(postgres, tmp_path) -> None:
    there = run(tmp_path / "there", url=postgres.url)
    here = run(tmp_path / "here")
    assert list(map(key, there)) == list(map(key, here))
    assert not (tmp_path / "there" / JOURNAL).exists()
    found = open_run(tmp_path / "there")
    assert list(map(key, found.trials)) == list(map(key, here))
    for a, b in zip(there, here, strict=True):
        assert {k: v.tolist() for k, v in a.scores.per_example.items()} == {
            k: v.tolist() for k, v in b.scores.per_example.items()
        }
    assert run_folders([tmp_path]) == [tmp_path / "here", tmp_path / "there"]


def test_killed_at_any_moment_it_resumes(postgres, tmp_path) -> None:
    whole = list(map(key, run(tmp_path / "whole", url=postgres.url)))
    for dies_after in (1, 6, 13, 22):
        folder = tmp_path / str(dies_after)
        study, store = build(folder, FakeExecutor(dies_after=dies_after), url=postgres.url)
        with pytest.raises(SystemExit):
            study.run()
        store.close()
        assert list(map(key, run(folder))) == whole, "the pointer is enough"


def _sit(folder: Path, url: str) -> None:
    class Slow(FakeExecutor):
        def collect(self, timeout=None):
            if len(list((folder / "scores").glob("*.npz"))) >= 9:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().collect(timeout)

    study, _ = build(folder, Slow(), url=url)
    study.run()


def test_kill_9_frees_the_run(postgres, tmp_path) -> None:
    process = multiprocessing.get_context("fork").Process(
        target=_sit, args=(tmp_path / "a", postgres.url)
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    before = open_run(tmp_path / "a")
    assert len(before.trials) == 9
    assert before.running
    after = run(tmp_path / "a", url=postgres.url)
    assert list(map(key, after)) == list(map(key, run(tmp_path / "b")))


def test_two_drivers(postgres, tmp_path) -> None:
    _, store = build(tmp_path, FakeExecutor(), url=postgres.url)
    with pytest.raises(RunFolderError, match="a run folder has one driver"):
        build(tmp_path, FakeExecutor())
    store.close()
    build(tmp_path, FakeExecutor())[1].close()


def test_a_server_that_goes_away_loses_nothing(postgres, tmp_path) -> None:
    class Unplugged(FakeExecutor):
        def collect(self, timeout=None):
            if len(list((tmp_path / "a" / "scores").glob("*.npz"))) == 7:
                postgres.stop()
            return super().collect(timeout)

    study, store = build(tmp_path / "a", Unplugged(), url=postgres.url)
    try:
        with pytest.raises(RunFolderError, match="Start the same command again"):
            study.run()
        with pytest.raises(RunFolderError, match="Start the same command again"):
            open_run(tmp_path / "a")
    finally:
        store.close()
        postgres.start()
    assert len(open_run(tmp_path / "a").trials) == 7
    assert list(map(key, run(tmp_path / "a"))) == list(map(key, run(tmp_path / "b")))


def test_scores_that_a_power_cut_took(postgres, tmp_path) -> None:
    whole = list(map(key, run(tmp_path, url=postgres.url)))
    (tmp_path / "scores" / f"{whole[-1][0]:05d}-test.npz").write_bytes(b"")
    assert len(build_and_load(tmp_path)) == len(whole)  # told last: cut off, RUNNING no more
    assert list(map(key, run(tmp_path))) == whole


def build_and_load(folder: Path) -> list:
    _, store = build(folder, FakeExecutor())
    try:
        return store.load()
    finally:
        store.close()


def test_the_rows_are_an_optuna_journal(postgres, tmp_path) -> None:
    """As docs/scale.md says: written into a file, Optuna's tools open it."""
    import optuna
    import psycopg

    told = run(tmp_path / "a", url=postgres.url)
    _, name = (tmp_path / "a" / POINTER).read_text().split()
    with psycopg.connect(postgres.url) as connection:
        rows = connection.execute(
            "select record from evomerge_journal where run = %s order by number", (name,)
        )
        (tmp_path / JOURNAL).write_text("".join(f"{record}\n" for (record,) in rows))
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / JOURNAL))
    study = optuna.load_study(study_name="search", storage=optuna.storages.JournalStorage(backend))
    assert len(study.trials) == sum(t.split == "search" for t in told)


def test_a_file_is_not_moved_into_a_database(postgres, tmp_path) -> None:
    run(tmp_path)
    with pytest.raises(RunFolderError, match="Leave storage out"):
        TrialStore(tmp_path, OBJECTIVES, {}, AXES, postgres.url)
    assert not (tmp_path / POINTER).exists()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("sqlite:///runs.db", "expected null or postgresql://"),
        (3, "expected null or postgresql://"),
        ("postgresql://me:secret@host/db", "no password in the URL"),
        ("postgresql://host/db?colour=red", "storage: invalid URI query parameter"),
    ],
)
def test_urls_that_are_refused(url, words) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(ConfigError, match=words):
        check_url(url)
