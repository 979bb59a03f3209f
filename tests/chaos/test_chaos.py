"""Random kills on a real Ray cluster of two nodes; ``make chaos``.

    SEED=7 pytest -m slow -s tests/chaos           # one schedule
    SEED=20-29 pytest -m slow -s tests/chaos       # ten
    SCHEDULES=200 make chaos

A schedule is a search in driver processes of its own (``driver.py``) on the real Ray executor and
the real store, while workers, nodes, the driver and Ray's head are killed and the disk fills up. A
seed settles search, workers and deeds; the moments that they hit are those of a busy machine.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from evomerge.store import open_run
from tests.chaos.cluster import ChaosCluster
from tests.chaos.driver import FULL, LOST, N_TRIALS, sit, told_file
from tests.fakes import FakeExecutor
from tests.test_study import key, run

PATIENCE = 300.0
DEEDS = ("worker", "worker", "node", "driver", "driver", "gcs", "head", "full")


@pytest.fixture(scope="module")
def process():
    """Processes that have imported all that a driver needs: a start takes no seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ray", "tests.chaos.driver", "tests.test_study"])
    return context.Process


def do(deed: str, driver, cluster: ChaosCluster, rng: random.Random) -> bool:
    """One kill; False where there was nothing to kill."""
    if deed == "worker":
        return cluster.kill_worker(rng)
    if deed == "node":
        return cluster.kill_node(rng)
    if deed == "driver":
        driver.kill()
        return True
    if deed == "gcs":
        return cluster.restart_gcs()
    if deed == "head":
        return cluster.kill_head()
    return False  # the disk fills up by itself


def one_sitting(driver, cluster, folder: Path, due: list[str], rng, end: float) -> Counter[str]:
    """Does deeds that are due to a driver until it ends; those that were done."""
    done: Counter[str] = Counter()
    while driver.is_alive() and not done["head"]:
        assert time.monotonic() < end, "no end"
        time.sleep(rng.uniform(0.02, 0.4))
        if not due or not told_file(folder, driver.pid).exists():
            continue
        deed = rng.choice(due)
        if driver.is_alive() and do(deed, driver, cluster, rng):
            due.remove(deed)
            done[deed] += 1
    driver.join(max(0.0, end - time.monotonic()))
    assert driver.exitcode is not None, "no end"
    return done


def schedule(
    seed: int, process, cluster: ChaosCluster, folder: Path
) -> tuple[Counter, ChaosCluster]:
    """Runs one search to its end; what was done to it, and the cluster that is left."""
    rng, deeds = random.Random(seed), Counter()
    workers, optimizer = rng.choice((1, 1, 3)), rng.choice(("random", "cma_es", "nsga2"))
    whole = list(map(key, run(folder / "whole", FakeExecutor(), optimizer=optimizer,
                              n_trials=N_TRIALS)))  # fmt: skip
    cut = folder / "cut"
    due = rng.sample(DEEDS, rng.randint(1, 5))
    end = time.monotonic() + PATIENCE
    code = None
    while code != 0:
        limit = rng.randint(1000, 20_000) if "full" in due else 0
        driver = process(target=sit, args=(cluster.address, cut, workers, optimizer, limit))
        driver.start()
        done = one_sitting(driver, cluster, cut, due, rng, end)
        code = driver.exitcode
        allowed = {0}
        allowed |= {FULL} if limit else set()
        allowed |= {LOST} if done["head"] else set()
        allowed |= {-signal.SIGKILL} if done["driver"] else set()
        assert code in allowed, (code, done, (cut / "output").read_text()[-2000:])
        if code == FULL:
            due.remove("full")
            done["full"] += 1
        if done["head"]:
            cluster.close()
            cluster = ChaosCluster()
        deeds += done
    judge(cut, whole, synchronous=workers == 1)
    return deeds, cluster


def judge(folder: Path, whole: list[tuple], *, synchronous: bool) -> None:
    """Every trial once, none lost, none told twice in a sitting; and the undisturbed run's end."""
    found = open_run(folder)
    keys = [(t.number, t.split) for t in found.trials]
    assert len(set(keys)) == len(keys)
    assert not found.running
    assert sorted(n for n, s in keys if s == "search") == list(range(4 + N_TRIALS))
    for file in folder.glob("told-*"):
        told = file.read_text().split()
        assert len(set(told)) == len(told), "told twice"
        assert [int(n) for n in told] == [n for n, s in keys if s == "search"][: len(told)]
    if synchronous:
        assert list(map(key, found.trials)) == whole


def seeds() -> range:
    """``SEED=7`` or ``SEED=20-29``; else the first ``SCHEDULES``."""
    first, _, last = os.environ.get("SEED", "").partition("-")
    if first:
        return range(int(first), int(last or first) + 1)
    return range(int(os.environ.get("SCHEDULES", "50")))


@pytest.mark.slow
def test_chaos(process, tmp_path) -> None:
    cluster, deeds = ChaosCluster(), Counter()
    try:
        for seed in seeds():
            start = time.monotonic()
            try:
                done, cluster = schedule(seed, process, cluster, tmp_path / str(seed))
            except BaseException:
                print(f"SEED={seed} pytest -m slow -s tests/chaos")
                raise
            deeds += done
            seconds = time.monotonic() - start
            print(f"seed {seed}: {dict(done)}, fine after {seconds:.0f} s", flush=True)
    finally:
        cluster.close()
    print(f"{len(seeds())} schedules, every trial exactly once; kills: {dict(deeds)}")
    assert len(seeds()) < 10 or sum(deeds.values()) >= len(seeds())
