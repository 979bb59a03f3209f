"""Thousands of seeded schedules of a search; a failing seed is printed and replays.

pytest tests/simulation                                        # all of them
SEED=137 pytest tests/simulation -k "schedules and sobol"      # one schedule
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import os
import shutil
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf

from evomerge.resources import resource_folder
from evomerge.store import open_run
from evomerge.study import Study
from tests.simulation.schedule import Plan, judge, run
from tests.simulation.virtual import Faults

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
def memory(tmp_path_factory) -> Iterator[Path]:
    """A folder that costs no disk: only what a death leaves behind matters here."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        yield tmp_path_factory.mktemp("simulation")
        return
    folder = shared / f"evomerge-simulation-{os.getpid()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    """One per core, so that thousands of schedules take half a minute."""
    n = min(4, os.cpu_count() or 1)
    with ProcessPoolExecutor(n, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def outcomes(name: str, seeds: Sequence[int], memory: Path) -> Counter[str]:
    """Runs and judges schedules; how they ended.

    Raises:
        AssertionError: One failed; the message says how to replay it.
    """
    build, ends = driver(name), Counter()
    n_trials = (8, 10) if name in {"bayesian", "map_quadratic"} else (2, 5)
    for seed in seeds:
        plan = Plan.draw(seed, n_trials, documents=name in DOCUMENTS)
        folder = memory / name / str(seed)
        try:
            ends[judge(plan, build, folder, run(plan, build, folder))] += 1
        except BaseException as e:
            command = f"SEED={seed} pytest tests/simulation -k 'schedules and {name}'"
            reason = "".join(traceback.format_exception(e))
            raise AssertionError(f"{command}   # {plan}\n{reason}") from None
        shutil.rmtree(folder)
    return ends


@pytest.mark.parametrize("name", COUNTS)
def test_schedules(name, memory, processes) -> None:
    if one := os.environ.get("SEED"):
        print(outcomes(name, [int(one)], memory))
        return
    pieces = [range(i, COUNTS[name], 20) for i in range(min(20, COUNTS[name]))]
    jobs = [processes.submit(outcomes, name, piece, memory) for piece in pieces]
    ends = sum((job.result() for job in jobs), Counter())
    print(name, dict(ends))
    assert sum(ends.values()) == COUNTS[name]
    assert ends["finished"] > 0.9 * COUNTS[name]


@pytest.mark.parametrize("name", ["random", "de", "m2n2", "cma_es", "nsga2"])
def test_one_worker_equals_the_undisturbed_run(name, memory, request) -> None:
    """Deaths, losses, repeats and stragglers leave the trials of a run that had none of them."""
    folder = memory / f"one-{name}"
    request.addfinalizer(lambda: shutil.rmtree(folder, ignore_errors=True))
    build, checked = driver(name), 0
    for seed in range(400, 410):
        plan = dataclasses.replace(Plan.draw(seed, (6, 9), documents=True), workers=1)
        plan = dataclasses.replace(plan, faults=dataclasses.replace(plan.faults, poisons=0.0))
        calm = dataclasses.replace(plan, faults=Faults(seed), deaths=())
        both = []
        for i, what in enumerate((plan, calm)):
            run(what, build, folder / f"{seed}-{i}")
            trials = open_run(folder / f"{seed}-{i}").trials
            both.append([(t.number, t.split, t.recipe.id, dict(t.scores.values)) for t in trials])
        assert both[0] == both[1], f"seed {seed}"
        checked += len(plan.deaths) > 0
    assert checked > 3


@pytest.mark.parametrize("name", ["sobol", "cma_es"])
def test_on_a_real_disk(name, tmp_path) -> None:
    """The same with every sync carried out, and no part of the store's code replaced."""
    build = driver(name)
    for seed in range(500, 506):
        plan = Plan.draw(seed, (3, 5), documents=True)
        witnesses = run(plan, build, tmp_path / str(seed), syncs=True)
        judge(plan, build, tmp_path / str(seed), witnesses)


def _tells_first(study: Study) -> None:
    for trial in (finished := study._executor.collect()):
        del study._pending[trial.number, trial.split]
        study._take(trial)
    study._store.append(*finished)


def _believes_everything(study: Study) -> None:
    study._store.append(*(finished := study._executor.collect()))
    for trial in finished:
        del study._pending[trial.number, trial.split]
        study._take(trial)


def _forgets_what_ran(study: Study) -> None:
    for trial in (t for t in study._store.load() if t.finished):
        study._n_search += trial.kind == "search" and trial.split == "search"
        study._take(trial, fresh=False)


@pytest.mark.parametrize(
    ("method", "broken", "error"),
    [
        ("_collect", _tells_first, AssertionError),
        ("_collect", _believes_everything, KeyError),
        ("_replay", _forgets_what_ran, AssertionError),
    ],
)
def test_the_laws_notice_a_broken_study(memory, monkeypatch, method, broken, error) -> None:
    monkeypatch.setattr(Study, method, broken)
    folder, build = memory / broken.__name__, driver("random")

    def some() -> None:
        for seed in range(40):
            plan = Plan.draw(seed, (2, 5))
            judge(plan, build, folder / str(seed), run(plan, build, folder / str(seed)))

    with pytest.raises(error):
        some()
