"""A cluster that starts without a worker node: Ray's autoscaler starts them because of a search.

The nodes are Ray's own "fake" ones, processes of this machine; scheduler, autoscaler and the
demand that it sees are real.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.chaos.cluster import name_of

EMPTY_LISTS = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files",
    "rsync_exclude", "rsync_filter",
)  # fmt: skip

DRIVER = """
import sys
from evomerge.executors import ray as executors
from evomerge.executors.base import Job
from evomerge.executors.worker import WorkerSpec
from evomerge.trial import Trial
from tests.chaos.driver import SleepingActor
from tests.fakes import recipe

executors._Actor = SleepingActor
spec = WorkerSpec(pool=None, evaluator=None, device="cpu")
executor = executors.RayExecutor(spec, address=sys.argv[1], workers=4, cpus_per_worker=1)
executor.warm_up()
started = told = 0
while executor.capacity < 4 or told < started:
    while executor.capacity < 4 and started - told < executor.capacity:
        executor.submit(Job(Trial(started, "search", None, recipe(started / 1e4))))
        started += 1
    told += len(executor.collect())
print("four workers", flush=True)
executor.close()
"""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Of a head without cores, which may start two nodes with two each."""
    import ray

    with socket.socket() as s:
        s.bind(("", 0))
        port = s.getsockname()[1]
    address = f"{ray.util.get_node_ip_address()}:{port}"
    provider = {
        "type": "fake_multinode", "gcs_address": address, "use_node_id_as_ip": True,
        "disable_node_updaters": True, "disable_launch_config_check": True,
    }  # fmt: skip
    types = {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "cpu": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    }
    config = {
        "cluster_name": "fake", "max_workers": 2, "provider": provider, "upscaling_speed": 1.0,
        "available_node_types": types, "head_node_type": "ray.head.default",
        "idle_timeout_minutes": 0.05, "auth": {}, "docker": {}, "file_mounts": {},
        "file_mounts_sync_continuously": False, **{name: [] for name in EMPTY_LISTS},
    }  # fmt: skip
    file = tmp_path / "autoscaling.json"
    file.write_text(json.dumps(config))
    ours = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    head = subprocess.Popen(
        [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=0",
         f"--port={port}", "--include-dashboard=false", f"--autoscaling-config={file}"],
        env=os.environ | ours | {"RAY_AUTH_MODE": "token"}, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield address
    finally:
        family = psutil.Process(head.pid).children(recursive=True)
        head.terminate()
        psutil.wait_procs(family, timeout=30)
        for p in family:
            if p.is_running():
                p.kill()
        head.kill()
        head.wait()


def raylets() -> int:
    """Of the nodes that were started for the cluster, the head's own not counted."""
    mine = psutil.Process().children(recursive=True)
    return sum(name_of(p) == "raylet" for p in mine) - 1


@pytest.mark.slow
def test_a_search_makes_a_cluster_grow_and_leaves_it(address) -> None:
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, address], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"RAY_AUTH_MODE": "token"}, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    try:
        said, _ = driver.communicate(timeout=180)
    finally:
        driver.kill()
    assert said == "four workers\n"
    assert raylets() == 2
    end = time.monotonic() + 120
    while raylets():
        assert time.monotonic() < end, "the nodes stay"
        time.sleep(0.5)
