"""What the driver costs a cluster: utilisation, time and memory per trial, Ray's round trip.

    python benchmarks/cluster.py [--trials N] [--optimizer NAME] [--only NAME] [--folder DIR]

The real study, store (journal and scores on the disk of ``--folder``), search driver and live view
(quiet) run on the simulation's virtual executor: an evaluation takes no time here and, on the
virtual clock, a log-normal 30 s (median; sigma 0.5), five times as long for one in ten, and one in
a hundred loses its worker. What the driver really spends between two calls of ``collect``, waiting
for the disk included, passes on the virtual clock too, while workers that are finished wait for
it. A trial has three objectives with 600 documents each and 4 experts; its recipe covers 9 tensors
per layer group.

Figures:

* ``utilisation_64``, ``utilisation_256``: share of the workers' time with a job, from the start to
  the last job handed out, at 24 dimensions; ``_search``: from the first search trial on, which is
  later for drivers that wait for the reference points;
* ``driver_ms_per_trial``, ``driver_ms_per_trial_200``: wall time of the driver at 24 and 200
  dimensions, 256 workers; ``_cpu``: its processor time; ``_first`` and ``_last``: of the first and
  the last tenth of the trials, to show what grows;
* ``rss_growth_mb``: from the first hundred trials to the last one, at 24 dimensions;
* ``load_s``: seconds to read the finished run;
* ``ray_round_trip_ms``, ``ray_trials_per_s``: one job through the real Ray executor, alone and
  with 16 actors (processes of their own; they answer at once) kept busy.

On two cores of an AMD EPYC (Zen 4), 10,000 trials with cma_es: utilisation of the whole run .9999
(64 workers) and .971 (256; while drivers waited for the reference points, .975 and .881). Driver,
otherwise idle: 1.6 and 2.5 ms a trial, 98 MB; under a load of 6 to 8: 5.1 and 5.8 ms.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from hydra.utils import get_class
from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).parent.parent))

from evomerge.executors.base import Job
from evomerge.optimizers.base import Problem
from evomerge.recipe import LayerGroup, ModelRef, Recipe
from evomerge.report.live import LiveView
from evomerge.resources import resource_folder
from evomerge.run import Run
from evomerge.store import TrialStore, open_run
from evomerge.study import Study
from evomerge.trial import Objective, Scores, Trial, TrialState
from tests.simulation.virtual import Faults, VirtualExecutor

K = 4
N_DOCUMENTS = 600
OBJECTIVES = tuple(Objective(n, f"task_{n}", "acc") for n in ("math", "code", "chat"))
FAULTS = Faults(seed=0, straggles=0.1, slowdown=5.0, loses=0.01, restart=60.0)


class Space:
    """[0, 1]^d as the weights of d / 4 layer groups and 4 experts."""

    def __init__(self, dim: int) -> None:
        tensors = [[f"model.layers.{g}.part{i}.weight" for i in range(9)] for g in range(dim // K)]
        self.groups = tuple(LayerGroup(f"layers.{g}", tuple(t)) for g, t in enumerate(tensors))
        self.models = tuple(ModelRef(f"m{k}", f"/models/m{k}", str(k) * 64) for k in range(K))
        self.base = ModelRef("base", "/models/base", "b" * 64)
        self.axes = [
            (f"weight[{g.name}][{m.name}]", 0.0, 1.0) for g in self.groups for m in self.models
        ]

    def snap(self, x: np.ndarray) -> np.ndarray:
        return np.array(x, dtype=np.float64)

    def decode(self, x: np.ndarray) -> Recipe:
        weight = {"weight": x.reshape(len(self.groups), K)}
        return Recipe("task_arithmetic", self.models, self.base, self.groups, weight)

    def references(self) -> list[tuple[str, Recipe, np.ndarray | None]]:
        rows = [("base", np.zeros(K)), *((f"expert m{k}", np.eye(K)[k]) for k in range(K))]
        rows.append(("uniform average", np.full(K, 1 / K)))
        points = [(label, np.tile(row, len(self.groups))) for label, row in rows]
        return [(label, self.decode(x), x) for label, x in points]


NOISE = np.random.default_rng(0).normal(0, 0.3, N_DOCUMENTS).astype(np.float32)


def evaluate(trial: Trial) -> Scores:
    """Three bowls; a score per document."""
    w = trial.recipe.coefficients["weight"]
    at = {o.name: 0.3 + 0.2 * i for i, o in enumerate(OBJECTIVES)}
    values = {name: 1 - float(((w - a) ** 2).mean()) for name, a in at.items()}
    each = {name: (NOISE + v).astype(np.float32) for name, v in values.items()}
    return Scores(values, dict.fromkeys(values, 0.01), each, {"merge": 1.0, "score": 29.0})


def seconds(trial: Trial) -> float:
    rng = np.random.default_rng((1, trial.number, trial.attempt))
    return float(30 * np.exp(0.5 * rng.normal()))


class Measured(VirtualExecutor):
    """Reads the driver's processor time, and what it had spent after each answer."""

    def __init__(self, workers: int) -> None:
        super().__init__(evaluate, workers, seconds, FAULTS, time.perf_counter)
        self.cpu, self._cpu_since = 0.0, time.process_time()
        self.told, self.began = 0, (0.0, 0.0)
        self.curve: list[tuple[int, float, int]] = []  # trials, driver seconds, resident bytes

    def submit(self, job: Job) -> None:
        if job.trial.kind == "search" and self.began == (0.0, 0.0):
            self.began = self.offered_until_now
        super().submit(job)

    def collect(self, timeout: float | None = None) -> list[Trial]:
        self.cpu += time.process_time() - self._cpu_since
        finished = super().collect(timeout)
        if self.told // 100 != (self.told + len(finished)) // 100:
            self.curve.append((self.told, self.driver, psutil.Process().memory_info().rss))
        self.told += len(finished)
        self._cpu_since = time.process_time()
        return finished


def search(dim: int, workers: int, n_trials: int, optimizer: str, folder: Path) -> dict[str, Any]:
    """One search; its figures."""
    space = Space(dim)
    config = dict(OmegaConf.load(resource_folder("conf") / "optimizer" / f"{optimizer}.yaml"))
    driver = get_class(config.pop("_target_"))(
        Problem(dim, 0, OBJECTIVES, np.full(dim, 0.5)), **config
    )
    documents = {s: {o.name: n} for s, n in (("select", 0), ("test", 0)) for o in OBJECTIVES}
    meta = {"fingerprint": {}, "pareto": driver.pareto, "documents": documents}
    store = TrialStore(folder, OBJECTIVES, meta, space.axes)
    executor = Measured(workers)
    view = LiveView(quiet=True)
    view.begin(OBJECTIVES, workers, n_trials, 7_000_000_000, K + 1)
    study = Study(
        space=space,
        optimizer=driver,
        executor=executor,
        store=store,
        references=space.references(),
        n_trials=n_trials,
        view=functools.partial(_run, folder, meta),
        observer=view,
    )
    assert study.run()
    store.close()
    start = time.perf_counter()
    assert len(open_run(folder).trials) == n_trials + len(space.references())
    loaded = time.perf_counter() - start
    curve, (offered, idle) = executor.curve, executor.began
    tenth = max(1, len(curve) // 10)
    return {
        "utilisation": 1 - executor.idle / executor.offered,
        "utilisation_search": 1 - (executor.idle - idle) / (executor.offered - offered),
        "driver_ms": 1e3 * executor.driver / executor.told,
        "driver_ms_cpu": 1e3 * executor.cpu / executor.told,
        "driver_ms_first": _slope(curve[: tenth + 1]),
        "driver_ms_last": _slope(curve[-tenth - 1 :]),
        "rss_growth_mb": (curve[-1][2] - curve[0][2]) / 2**20,
        "load_s": loaded,
    }


def _run(folder: Path, meta: dict[str, Any], trials: Any) -> Run:
    return Run(folder, OBJECTIVES, tuple(trials), (), meta)


def _slope(curve: list[tuple[int, float, int]]) -> float:
    """Milliseconds per trial between the ends of a piece of the curve."""
    (n0, s0, _), (n1, s1, _) = curve[0], curve[-1]
    return 1e3 * (s1 - s0) / max(1, n1 - n0)


class Echo:
    """A worker that answers at once."""

    def __init__(self, spec: Any) -> None:
        del spec

    def ready(self) -> tuple[None, list[Any]]:
        return None, []

    def run(self, job: Job) -> tuple[Trial, list[Any]]:
        trial = job.trial
        return dataclasses.replace(trial, state=TrialState.COMPLETE, scores=evaluate(trial)), []


def round_trip(n: int, workers: int = 16) -> dict[str, float]:
    """The real Ray executor with actors of this file's own."""
    import ray

    from evomerge.executors import ray as executors
    from evomerge.executors.worker import WorkerSpec

    ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
    executors._Actor = Echo  # type: ignore[misc,assignment]
    spec = WorkerSpec(pool=None, evaluator=None, device="cpu")  # type: ignore[arg-type]
    executor = executors.RayExecutor(spec, workers=workers, cpus_per_worker=1)
    try:
        space, rng = Space(24), np.random.default_rng(0)
        trials = [
            Trial(i, "search", x, space.decode(x)) for i, x in enumerate(rng.random((n, 24)))
        ]
        while sum(slot.built for slot in executor._slots) < workers:
            executor._wait(1.0)
        executor.warm_up()
        alone = []
        for trial in trials[:100]:
            start = time.perf_counter()
            executor.submit(Job(trial))
            assert executor.collect()
            alone.append(time.perf_counter() - start)
        left, done, start = trials[::-1], 0, time.perf_counter()
        for _ in range(workers):
            executor.submit(Job(left.pop()))
        while done < n:
            for _ in executor.collect():
                done += 1
                if left:
                    executor.submit(Job(left.pop()))
        rate = n / (time.perf_counter() - start)
    finally:
        executor.close()
        ray.shutdown()
    return {"ray_round_trip_ms": 1e3 * statistics.median(alone), "ray_trials_per_s": rate}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--optimizer", default="cma_es")
    parser.add_argument("--only", choices=("64", "256", "200", "ray"))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    for name, dim, workers in (("64", 24, 64), ("256", 24, 256), ("200", 200, 256)):
        if options.only in {None, name}:
            folder = Path(tempfile.mkdtemp(dir=options.folder))
            try:
                found = search(dim, workers, options.trials, options.optimizer, folder)
            finally:
                shutil.rmtree(folder)
            print(name, json.dumps({k: round(v, 4) for k, v in found.items()}), flush=True)
            suffix = "_200" if dim == 200 else ""
            figures[f"utilisation_{workers}{suffix}"] = found["utilisation"]
            figures[f"utilisation_{workers}_search{suffix}"] = found["utilisation_search"]
            if name != "64":
                figures["driver_ms_per_trial" + suffix] = found["driver_ms"]
                figures["rss_growth_mb" + suffix] = found["rss_growth_mb"]
    if options.only in {None, "ray"}:
        figures |= round_trip(2000)
    print(json.dumps({k: round(v, 4) for k, v in figures.items()}))


if __name__ == "__main__":
    main()
