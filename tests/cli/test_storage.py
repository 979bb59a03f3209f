"""``evomerge search storage=postgresql://...``, on a real server."""

from __future__ import annotations

import json

from evomerge.cli import main
from evomerge.store import JOURNAL, open_run
from tests.postgres import server


def test_search_continue_and_report_on_a_database(project, capsys) -> None:
    search = ["search", "mine.yaml", "run_dir=there", "n_trials=2"]
    with server() as postgres:
        assert main([*search, f"storage={postgres.url}"]) == 0
        assert not (project / "there" / JOURNAL).exists()
        assert main([*search[:-1], "n_trials=3"]) == 0, "the folder knows its database"
        assert main(["search", "mine.yaml", "run_dir=here", "n_trials=3"]) == 0
        capsys.readouterr()
        assert main(["report", "there", "--json", "-"]) == 0
        told = json.loads(capsys.readouterr().out)["trials"]
        here, there = (open_run(project / name).trials for name in ("here", "there"))
        assert len(told) == len(there)
        assert [(t.number, t.scores.values) for t in there if t.split == "search"] == [
            (t.number, t.scores.values) for t in here if t.split == "search"
        ]


def test_a_password_is_refused_before_anything_is_written(project, capsys) -> None:
    assert main(["search", "mine.yaml", "storage=postgresql://me:secret@host/db"]) == 2
    line = capsys.readouterr().err
    assert "PGPASSWORD" in line or "evomerge[postgres]" in line
    assert "secret" not in line
    assert not (project / "runs").exists() or not list((project / "runs").iterdir())
