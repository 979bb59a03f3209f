"""Trackers: a real MLflow on a file; one that fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.trackers import Both
from tests.fakes import FakeExecutor
from tests.test_study import OBJECTIVES, build

META = {
    "optimizer": "cma_es", "seed": 3, "models": {"name": "toy"},
    "space": {"name": "box", "method": "task_arithmetic", "dim": 4},
}  # fmt: skip


def sit(folder: Path, tracker, executor: FakeExecutor, *, finished: bool = True) -> list:
    watched = Both(Silent(), tracker)
    study, store = build(folder, executor, observer=watched)
    try:
        study.run()
    except SystemExit:
        assert not finished
    finally:
        watched.close(finished=finished)
        told = store.load()
        store.close()
    return told


class Silent:
    def asked(self, n, seconds) -> None: ...
    def phase(self, phase, total) -> None: ...
    def started(self, trial) -> None: ...
    def told(self, trial) -> None: ...


def test_mlflow_logs_every_trial_once_over_two_sittings(tmp_path, monkeypatch) -> None:
    pytest.importorskip("mlflow", reason="MLflow is not installed: pip install evomerge[mlflow]")
    from mlflow import MlflowClient

    from evomerge.trackers.mlflow import Mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri, folder = f"file:{tmp_path / 'mlruns'}", tmp_path / "it's a run"

    def tracker() -> Mlflow:
        return Mlflow(folder=folder, objectives=OBJECTIVES, meta=META, uri=uri)

    sit(folder, tracker(), FakeExecutor(dies_after=9), finished=False)
    client = MlflowClient(tracking_uri=uri)
    where = client.get_experiment_by_name("evomerge").experiment_id
    (run,) = client.search_runs([where])
    assert run.info.status == "KILLED"
    told = sit(folder, tracker(), FakeExecutor())
    (run,) = client.search_runs([where])
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer"] == "cma_es"
    for split in ("search", "select", "test"):
        logged = client.get_metric_history(run.info.run_id, f"{split}.b")
        wanted = [(t.number, -t.scores.values["b"]) for t in told if t.split == split]
        assert sorted((m.step, m.value) for m in logged) == sorted(wanted)


def test_a_tracker_that_fails_ends_no_search(tmp_path, caplog) -> None:
    class Broken(Silent):
        n = 0

        def told(self, trial) -> None:
            Broken.n += 1
            raise ConnectionError("the server is away")

    assert len(sit(tmp_path, Broken(), FakeExecutor())) > 20
    assert Broken.n == 1
    assert "left out from here on: ConnectionError: the server is away" in caplog.text
