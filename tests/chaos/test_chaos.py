"""Random kills on a real Ray cluster of two nodes; ``make chaos``.

    SEED=7 pytest -m slow tests/chaos      # one schedule
    SCHEDULES=200 make chaos

A schedule is a search in a driver process of its own (this file, run as a script) on the real Ray
executor, with the real store, while workers, nodes and the driver are killed and the disk fills
up. Only the evaluation is simulated: it sleeps and scores a function of the recipe.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from evomerge.errors import RunFolderError
from evomerge.executors.worker import WorkerSpec
from evomerge.store import JOURNAL, open_run
from evomerge.trial import Trial, TrialState
from tests.fakes import FakeExecutor, scores_of
from tests.test_study import build, key, run

N_TRIALS = 16
PATIENCE = 240.0
FULL = 3
"""Exit code of a driver whose disk is full."""


class SleepingWorker:
    """Takes its time over a trial."""

    def run(self, job) -> Trial:
        time.sleep(random.uniform(0.02, 0.3))
        trial = job.trial
        done = {"state": TrialState.COMPLETE, "scores": scores_of(trial.recipe, trial.split)}
        return trial.__class__(**{**trial.__dict__, **done})


def drive(address: str, folder: Path, workers: int, optimizer: str, limit: int) -> int:
    """One sitting of the search; its exit code."""
    from evomerge.executors import ray as executors

    class SleepingActor(executors._Actor):
        def __init__(self, spec) -> None:
            self._notes, self._error, self._worker = executors._Notes(), None, SleepingWorker()

    executors._Actor = SleepingActor
    spec = WorkerSpec(pool=None, evaluator=None, device="cpu")
    executor = executors.RayExecutor(
        spec, address=address, workers=workers, cpus_per_worker=1, max_attempts=20
    )
    study, store = build(folder, executor, optimizer=optimizer, n_trials=N_TRIALS)
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        size = (folder / JOURNAL).stat().st_size + limit
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    with (folder / f"told-{os.getpid()}").open("w", buffering=1) as told:
        tell = study._optimizer.tell

        def witness(trials) -> None:
            told.writelines(f"{t.number}\n" for t in trials)
            tell(trials)

        study._optimizer.tell = witness
        try:
            return 0 if study.run() else 1
        except RunFolderError as e:
            return FULL if "Free some space" in str(e) else 1
        finally:
            store.close()
            executor.close()


@pytest.fixture(scope="module")
def cluster():
    """A head without cores of its own, and two nodes with two each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
    yield cluster, nodes
    cluster.shutdown()


def kill_worker(rng: random.Random) -> bool:
    actors = [p for p in psutil.process_iter(["name"]) if "SleepingActor" in p.info["name"]]
    mine = {p.pid for p in psutil.Process().children(recursive=True)}
    actors = [p for p in actors if p.pid in mine]
    if actors:
        rng.choice(actors).kill()
    return bool(actors)


def kill_node(cluster, nodes, rng: random.Random) -> bool:
    cluster.remove_node(nodes.pop(rng.randrange(len(nodes))), allow_graceful=False)
    nodes.append(cluster.add_node(num_cpus=2))
    return True


def do(deed: str, driver: subprocess.Popen, cluster, nodes, rng: random.Random) -> bool:
    """One kill; False where there was nothing to kill."""
    if deed == "worker":
        return kill_worker(rng)
    if deed == "node":
        return kill_node(cluster, nodes, rng)
    if deed == "driver":
        driver.kill()
        return True
    return False  # the disk fills up by itself


def sit(address: str, folder: Path, workers: int, optimizer: str, limit: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.chaos.test_chaos", address, str(folder), str(workers)]
    return subprocess.Popen(
        [*command, optimizer, str(limit)], cwd=Path(__file__).parents[2], stderr=subprocess.PIPE
    )


def schedule(seed: int, cluster, nodes, folder: Path) -> Counter[str]:
    """Runs one search to its end; what was done to it."""
    rng, deeds = random.Random(seed), Counter()
    workers, optimizer = rng.choice((1, 1, 3)), rng.choice(("random", "cma_es", "nsga2"))
    whole = list(map(key, run(folder / "whole", FakeExecutor(), optimizer=optimizer,
                              n_trials=N_TRIALS)))  # fmt: skip
    cut = folder / "cut"
    due = rng.sample(("worker", "worker", "node", "driver", "driver", "full"), rng.randint(1, 4))
    end = time.monotonic() + PATIENCE
    code = None
    while code != 0:
        assert time.monotonic() < end, "no end"
        limit = rng.randint(1000, 20_000) if "full" in due else 0
        driver = sit(cluster.address, cut, workers, optimizer, limit)
        began = time.monotonic()
        while driver.poll() is None:
            assert time.monotonic() < end, "no end"
            time.sleep(rng.uniform(0.05, 0.8))
            started = (cut / "scores").is_dir() and time.monotonic() - began > 1
            deed = rng.choice(due) if due and started else ""
            done = bool(deed) and do(deed, driver, cluster, nodes, rng)
            if done:
                due.remove(deed)
                deeds[deed] += 1
        code = driver.wait()
        error = driver.stderr.read().decode()
        assert code in {0, FULL, -signal.SIGKILL}, error[-2000:]
        if code == FULL:
            deeds["full"] += 1
        if "full" in due:
            due.remove("full")
    judge(cut, whole, synchronous=workers == 1)
    return deeds


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


@pytest.mark.slow
def test_chaos(cluster, tmp_path) -> None:
    one = os.environ.get("SEED")
    seeds = [int(one)] if one else range(int(os.environ.get("SCHEDULES", "50")))
    deeds: Counter[str] = Counter()
    for seed in seeds:
        try:
            deeds += schedule(seed, *cluster, tmp_path / str(seed))
        except BaseException:
            print(f"SEED={seed} pytest -m slow -s tests/chaos")
            raise
        print(f"seed {seed}: fine; so far {dict(deeds)}", flush=True)
    print(f"{len(seeds)} schedules, every trial exactly once; kills: {dict(deeds)}")
    assert one or sum(deeds.values()) >= len(seeds)


if __name__ == "__main__":
    address, folder, workers, optimizer, limit = sys.argv[1:]
    sys.exit(drive(address, Path(folder), int(workers), optimizer, int(limit)))
