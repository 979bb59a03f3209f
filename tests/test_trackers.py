"""Trackers: real ones on files; the endpoint that Prometheus reads; one that fails."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from evomerge.trackers import Observers
from tests.fakes import FakeExecutor
from tests.test_study import OBJECTIVES, build

META = {
    "optimizer": "cma_es", "seed": 3, "models": {"name": "toy"},
    "space": {"name": "box", "method": "task_arithmetic", "dim": 4},
}  # fmt: skip


def sit(folder: Path, tracker, executor: FakeExecutor, *, finished: bool = True) -> list:
    watched = Observers(Silent(), tracker)
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
        assert sorted((m.step, m.value) for m in logged) == wanted(told, split)


def wanted(told: list, split: str) -> list[tuple[int, float]]:
    return sorted((t.number, -t.scores.values["b"]) for t in told if t.split == split)


def records(path: Path) -> Iterator:
    """W&B's own file: LevelDB's log format, pieces of records in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in {1, 4}:  # whole, or the last piece
            record = Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def test_wandb_logs_every_trial_offline(tmp_path, monkeypatch) -> None:
    pytest.importorskip("wandb", reason="W&B is not installed: pip install evomerge[wandb]")
    from evomerge.trackers.wandb import Wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = tmp_path / "it's a run"

    def tracker() -> Wandb:
        return Wandb(folder=folder, objectives=OBJECTIVES, meta=META)

    sit(folder, tracker(), FakeExecutor(dies_after=9), finished=False)
    told = sit(folder, tracker(), FakeExecutor())
    runs = sorted(folder.glob("wandb/offline-run-*"), key=lambda p: p.stat().st_mtime)
    assert len({r.name.rpartition("-")[2] for r in runs}) == 1, "one run of W&B's"
    (file,) = runs[-1].glob("*.wandb")
    rows, config = [], {}
    for record in records(file):
        if record.WhichOneof("record_type") == "history":
            items = {i.key or i.nested_key[0]: i.value_json for i in record.history.item}
            rows.append({k: json.loads(v) for k, v in items.items()})
        if record.WhichOneof("record_type") == "run":
            config = {i.key: json.loads(i.value_json) for i in record.run.config.update}
    assert config["optimizer"] == "cma_es"
    assert [r["trial"] for r in rows] == [t.number for t in told]
    for split in ("search", "select", "test"):
        logged = [(r["trial"], r[f"{split}.b"]) for r in rows if f"{split}.b" in r]
        assert dict(logged) == pytest.approx(dict(wanted(told, split)))
        assert len(logged) == len(dict(logged))


def test_trackio_logs_every_trial_once_over_two_sittings(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip(
        "trackio", reason="Trackio is not installed: pip install evomerge[trackio]"
    )
    from trackio import Api
    from trackio.sqlite_storage import SQLiteStorage

    from evomerge.trackers.trackio import Trackio

    folder = tmp_path / "it's a run"

    def tracker() -> Trackio:
        return Trackio(folder=folder, objectives=OBJECTIVES, meta=META, project="evomerge-tests")

    sit(folder, tracker(), FakeExecutor(dies_after=9), finished=False)
    told = sit(folder, tracker(), FakeExecutor())
    (run,) = Api().runs("evomerge-tests")
    assert run.config["optimizer"] == "cma_es"
    rows = SQLiteStorage.get_logs("evomerge-tests", run.name)
    assert [r["trial"] for r in rows] == [t.number for t in told]
    for split in ("search", "select", "test"):
        logged = [(r["trial"], r[f"{split}.b"]) for r in rows if f"{split}.b" in r]
        assert dict(logged) == pytest.approx(dict(wanted(told, split)))
        assert len(logged) == len(dict(logged))


def scraped(ray) -> dict[str, float]:
    """What Prometheus would read of evomerge from the node: {name{tags}: value}."""
    port = ray.nodes()[0]["MetricsExportPort"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found = {}
    for line in lines:
        if line.startswith("ray_evomerge_"):
            name, tags, value = re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line).groups()
            kept = re.findall(r'(run|split|state|what)="([^"]*)"', tags)
            found[" ".join([name, *(v for _, v in sorted(kept))])] = float(value)
    return found


def test_prometheus_reads_the_metrics_of_a_node(tmp_path) -> None:
    reason = "no metrics without Ray's own extra: pip install evomerge[ray-dashboard]"
    pytest.importorskip("opentelemetry.exporter.prometheus", reason=reason)
    import ray

    from evomerge.trackers.ray_metrics import RayMetrics

    assert RayMetrics.where_ray_runs("a run", lambda: 4) is None
    ray.init(
        address="local", num_cpus=1, include_dashboard=False, log_to_driver=False,
        logging_level="ERROR",
    )  # fmt: skip
    try:
        if ray.nodes()[0]["MetricsExportPort"] < 1:
            pytest.skip(
                "no metrics without ray's own extra: pip install 'evomerge[ray-dashboard]'"
            )
        told = sit(tmp_path, RayMetrics.where_ray_runs("a run", lambda: 4), FakeExecutor())
        n = sum(t.split == "search" for t in told)
        end = time.monotonic() + 120
        while (found := scraped(ray)).get("ray_evomerge_trials_total a run search COMPLETE") != n:
            assert time.monotonic() < end, found
            time.sleep(1.0)
    finally:
        ray.shutdown()
    assert found["ray_evomerge_workers a run"] == 4
    assert found["ray_evomerge_busy_share a run"] == 0
    assert found["ray_evomerge_trial_seconds_total a run merge"] == pytest.approx(
        sum(t.scores.seconds["merge"] for t in told)
    )


def test_a_tracker_that_fails_ends_no_search(tmp_path, caplog) -> None:
    class Broken(Silent):
        n = 0

        def told(self, trial) -> None:
            Broken.n += 1
            raise ConnectionError("the server is away")

    assert len(sit(tmp_path, Broken(), FakeExecutor())) > 20
    assert Broken.n == 1
    assert "Broken is left out from here on: ConnectionError: the server is away" in caplog.text
