"""Thousands of seeded schedules of a search; a failing seed is printed and replays.

pytest tests/simulation                                        # all of them
SEED=137 pytest tests/simulation -k "schedules and sobol"      # one schedule
"""

from __future__ import annotations

import functools
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf

from evomerge.resources import resource_folder
from tests.simulation.schedule import Plan, judge, run

SMALL = {
    "bayesian": {"n_startup": 3},
    "cma_es": {"popsize": 3},
    "de": {"pop_size": 4},
    "m2n2": {"n_design": 2, "pop_size": 4},
    "map_quadratic": {"n_design": 4},
    "nsga2": {"pop_size": 4},
    "nsga3": {"pop_size": 4},
}
"""Settings that bring a driver to its second phase within a handful of trials."""
COUNTS = {
    "random": 5000,
    "grid": 3500,
    "sobol": 500,
    "de": 500,
    "m2n2": 500,
    "cma_es": 200,
    "nsga2": 200,
    "nsga3": 200,
    "bayesian": 5,
    "map_quadratic": 5,
}
"""Schedules of each driver: 10,000 of the cheap ones, whose time is the store's and the loop's."""
DOCUMENTS = ("m2n2",)
"""Drivers that need scores per document."""


def driver(name: str):
    """Builds a driver as a study does."""
    config = dict(OmegaConf.load(resource_folder("conf") / "optimizer" / f"{name}.yaml"))
    cls = get_class(config.pop("_target_"))
    return functools.partial(cls, **{**config, **SMALL.get(name, {})})


@pytest.fixture(scope="module")
def memory(tmp_path_factory) -> Path:
    """A folder that costs no disk: only what a death leaves behind matters here."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        return tmp_path_factory.mktemp("simulation")
    folder = shared / f"evomerge-simulation-{os.getpid()}"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", COUNTS)
def test_schedules(name, memory, request) -> None:
    build = driver(name)
    request.addfinalizer(lambda: shutil.rmtree(memory / name, ignore_errors=True))
    n_trials = (8, 10) if name in {"bayesian", "map_quadratic"} else (2, 5)
    one = os.environ.get("SEED")
    seeds = [int(one)] if one else range(COUNTS[name])
    ends: Counter[str] = Counter()
    for seed in seeds:
        plan = Plan.draw(seed, n_trials, documents=name in DOCUMENTS)
        folder = memory / name / str(seed)
        try:
            ends[judge(plan, build, folder, run(plan, build, folder))] += 1
        except BaseException:
            print(f"SEED={seed} pytest tests/simulation -k 'schedules and {name}'   # {plan}")
            raise
        shutil.rmtree(folder)
    print(name, dict(ends))
    if not one:
        assert ends["finished"] > 0.9 * len(seeds)
