"""Ray itself dies under a driver: it says so, or goes on where Ray comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

DRIVER = """
import sys
from evomerge.errors import StudyError
from evomerge.executors import lifeline, ray as executors
from evomerge.executors.base import Job
from evomerge.executors.worker import WorkerSpec
from evomerge.trial import Trial
from tests.chaos.driver import SleepingActor
from tests.fakes import recipe

address, patience = sys.argv[1:]
executors._Actor, lifeline.PATIENCE = SleepingActor, float(patience)
spec = WorkerSpec(pool=None, evaluator=None, device="cpu")
executor = executors.RayExecutor(spec, address=address or None, workers=1, cpus_per_worker=1)
try:
    executor.warm_up()
    for i in range(10_000):
        executor.submit(Job(Trial(i, "search", None, recipe(i / 1e4))))
        while not executor.collect():
            pass
        print("told", flush=True)
except StudyError as e:
    print(e, flush=True)
    sys.exit(2)
finally:
    executor.close()
"""


class Driver:
    """One worker, trial after trial, in a process of its own."""

    def __init__(self, address: str = "", patience: float = 45.0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, address, str(patience)],
            stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        )  # fmt: skip

    def told(self, n: int) -> None:
        """Waits for so many more trials."""
        for _ in range(n):
            assert self.process.stdout.readline() == "told\n"

    def last_words(self) -> str:
        """Waits for the end, which has to be an orderly one."""
        rest, _ = self.process.communicate(timeout=120)
        assert self.process.returncode == 2, rest
        return rest.replace("told\n", "").strip()

    def kill_child(self, name: str) -> None:
        """Kills a process of the Ray that the driver started."""
        for p in psutil.Process(self.process.pid).children(recursive=True):
            if p.is_running() and name in p.name():
                p.kill()
                return
        raise AssertionError(f"no {name}")


@pytest.fixture
def driver() -> Iterator:
    started: list[Driver] = []

    def start(*args, **kwargs) -> Driver:
        started.append(Driver(*args, **kwargs))
        started[-1].told(3)
        return started[-1]

    yield start
    for one in started:
        family = psutil.Process(one.process.pid).children(recursive=True) if (
            one.process.poll() is None) else []  # fmt: skip
        one.process.kill()
        one.process.communicate()
        for p in family:
            p.kill()


def test_a_driver_that_loses_its_raylet_says_so(driver) -> None:
    """Ray ends such a process from within, without a word."""
    one = driver()
    one.kill_child("raylet")
    words = one.last_words()
    assert "Ray's own process on this machine (the raylet) is gone" in words
    assert "the same command continues" in words


@pytest.mark.slow
def test_a_driver_that_loses_its_head_says_so(driver) -> None:
    one = driver(patience=4.0)
    one.kill_child("gcs_server")
    one.told(3)  # workers and driver need no head to talk to each other
    words = one.last_words()
    assert "Ray's head (" in words
    assert "does not answer for 4 s" in words
    assert "the same command continues" in words


@pytest.fixture(params=[True, False], ids=["remembers", "forgets"])
def cluster(request):
    from tests.chaos.cluster import ChaosCluster

    cluster = ChaosCluster(nodes=1, remembers=request.param)
    cluster.remembers = request.param
    yield cluster
    cluster.close()


@pytest.mark.slow
def test_a_head_that_comes_back(driver, cluster) -> None:
    """Work goes on; a lost worker is replaced only by a head that kept what it knew."""
    one = driver(cluster.address)
    cluster.restart_gcs()
    one.told(12)
    _kill_worker()
    if cluster.remembers:
        one.told(12)
        one.process.send_signal(signal.SIGKILL)
    else:
        words = one.last_words()
        assert "Ray's head was restarted and knows nothing of this search" in words
        assert "the same command continues" in words


def _kill_worker() -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for p in psutil.Process().children(recursive=True):
            if p.name().startswith("ray::Sleeping"):
                os.kill(p.pid, signal.SIGKILL)
                return
    raise AssertionError("no worker")
