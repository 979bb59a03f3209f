"""The laws that every optimizer keeps; see evomerge/optimizers/base.py."""

import random
import subprocess
import sys

import numpy as np
import pytest
from optimizer_fakes import (
    CODE,
    MATH,
    best,
    make_trial,
    references,
    running,
    simulate,
    two_bowls,
)

from evomerge.errors import ConfigError
from evomerge.optimizers.base import Problem
from evomerge.trial import Objective, TrialState


def same(a, b):
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def points(log):
    return [x for *_, xs in log.asks for x in xs]


def test_points_are_fresh_float_vectors_of_the_unit_cube(new):
    optimizer = new(dim=5)
    log = simulate(optimizer, two_bowls, 60, workers=3, warm=references(5))
    assert len(points(log)) == 60
    for x in points(log):
        assert x.shape == (5,)
        assert x.dtype == np.float64
        assert ((x >= 0) & (x <= 1)).all()
        assert x.flags.writeable
    assert len({x.tobytes() for x in points(log)}) == 60


def test_points_do_not_alias_the_state(new):
    a, b = new(), new()
    for number in range(40):
        x, y = a.ask(1, number)[0], b.ask(1, number)[0]
        assert np.array_equal(x, y)
        values = two_bowls(y)
        x[:] = 9.0  # what a caller does with its point is its own business
        a.tell([make_trial(number, y, values)])
        b.tell([make_trial(number, y, values)])


def test_same_seed_same_points_and_other_seeds_differ(new):
    runs = {
        seed: points(simulate(new(seed=seed), two_bowls, 40, workers=2, warm=references(5)))
        for seed in (0, 1)
    }
    again = points(simulate(new(seed=0), two_bowls, 40, workers=2, warm=references(5)))
    assert same(runs[0], again)
    assert not same(runs[0][-20:], runs[1][-20:])


def test_interleaved_instances_do_not_interfere(new):
    alone = points(simulate(new(seed=3), two_bowls, 40))
    a, b = new(seed=3), new(seed=4)
    got = []
    for number in range(40):
        for optimizer in (b, a):
            x = optimizer.ask(1, number)[0]
            optimizer.tell([make_trial(number, x, two_bowls(x))])
            if optimizer is a:
                got.append(x)
    assert same(alone, got)


def test_telling_at_once_equals_telling_in_parts(new):
    log = simulate(new(), two_bowls, 45, workers=3, fail=0.1, prune=0.1, warm=references(5))
    for cut in (0, 1, 4, 20, 49):
        whole, parts = new(), new()
        whole.tell(log.told)
        parts.tell(log.told[:cut])
        parts.tell(log.told[cut:])
        assert same(whole.ask(4, 49), parts.ask(4, 49))


@pytest.mark.parametrize("told", [0, 3, 4, 17, 40, 60])
def test_ask_law(new, told):
    log = simulate(new(), two_bowls, 60, workers=3, fail=0.1, prune=0.1, warm=references(5))
    optimizer = new()
    optimizer.tell(log.told[:told])
    rng = np.random.default_rng(told)
    pending = tuple(running(100 + i, rng.random(5)) for i in range(told % 4))
    together = optimizer.ask(5, 200, pending)
    one = optimizer.ask(1, 200, pending)
    rest = optimizer.ask(4, 201, (*pending, running(200, one[0])))
    assert same(together, [*one, *rest])
    assert same(together, optimizer.ask(5, 200, pending)), "ask must leave no trace"


def test_resume_by_replay(new):
    log = simulate(
        new(), two_bowls, 70, workers=4, seed=5, fail=0.15, prune=0.1, warm=references(5)
    )
    for told, first, n, pending, asked in log.asks[::6]:
        fresh = new()
        fresh.tell(log.told[:told])
        assert same(fresh.ask(n, first, pending), asked)


def test_failures_are_tolerated_and_never_best(new):
    optimizer = new(dim=3)
    rng = np.random.default_rng(0)
    for number in range(60):  # everything near the optimum fails
        x = optimizer.ask(1, number)[0]
        values = two_bowls(x) if np.abs(x - 0.5).max() > 0.25 else None
        optimizer.tell([make_trial(number, x, values)])
    assert len(optimizer.ask(3, 60)) == 3
    # A FAILED trial that carries glorious scores by mistake changes nothing but what is known
    # to have been tried.
    told = [make_trial(i, x, two_bowls(x)) for i, x in enumerate(rng.random((30, 3)))]
    plain, glorious = new(dim=3), new(dim=3)
    x = np.full(3, 0.9)
    plain.tell([*told, make_trial(30, x)])
    glorious.tell([*told, make_trial(30, x, {"math": 9.0, "code": 9.0}, state=TrialState.FAILED)])
    assert same(plain.ask(5, 31), glorious.ask(5, 31))


def test_all_failed(new):
    optimizer = new()
    log = simulate(optimizer, two_bowls, 50, workers=4, fail=1.0)
    assert len(points(log)) == 50
    optimizer.tell([make_trial(50, None)])
    assert len(optimizer.ask(2, 51)) == 2


def test_all_pruned_and_flat_scores(new):
    for prune, score in (
        (1.0, two_bowls),
        (0.0, lambda x: {"math": 0.25, "code": 0.25}),
        (0.3, lambda x: {"math": round(float(x[0])), "code": 0.0}),
    ):
        log = simulate(new(), score, 150, workers=2, prune=prune)
        assert len(points(log)) == 150
        assert np.isfinite(points(log)).all()


def test_inputs_are_not_mutated(new):
    start = np.full(5, 0.5)
    optimizer = new(start=start)
    log = simulate(new(), two_bowls, 40, prune=0.2, fail=0.1, warm=references(5))
    before = [(t.x.copy() if t.x is not None else None) for t in log.told]
    told = list(log.told)
    optimizer.tell(told)
    pending = [running(90, np.full(5, 0.2))]
    optimizer.ask(3, 91, pending)
    assert told == log.told
    assert len(pending) == 1
    assert (pending[0].x == 0.2).all()
    for x, t in zip(before, log.told, strict=True):
        assert (x is None and t.x is None) or np.array_equal(x, t.x)
    assert (start == 0.5).all()


def test_global_random_state_is_untouched(new):
    state, python = np.random.get_state(), random.getstate()  # noqa: NPY002
    simulate(new(), two_bowls, 40, workers=2, warm=references(5))
    after = np.random.get_state()  # noqa: NPY002
    assert np.array_equal(state[1], after[1])
    assert state[2:] == after[2:]
    assert python == random.getstate()


def test_silent_and_leaves_no_files(new, capfd, tmp_path, monkeypatch, recwarn):
    monkeypatch.chdir(tmp_path)
    flat = lambda x: {"math": 0.5, "code": 0.5}  # noqa: E731
    simulate(new(), flat, 60, workers=2)
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())
    assert not recwarn.list


def test_references_outside_the_space_and_foreign_trials(new):
    plain, noisy = new(), new()
    told = references(5)
    plain.tell(told)
    noisy.tell([make_trial(0, np.full(5, 0.1), {"math": 1.0, "code": 1.0}, split="test")])
    noisy.tell(told)
    noisy.tell([make_trial(1, np.full(5, 0.1), {"math": 1, "code": 1}, kind="final")])
    final = running(2, np.full(5, 0.1), kind="final")
    assert same(plain.ask(4, 4), noisy.ask(4, 4, (final,)))
    noisy.tell([make_trial(9, None, {"math": 1.0, "code": 1.0})])
    assert len(noisy.ask(2, 10)) == 2


@pytest.mark.parametrize(
    "objectives",
    [
        (MATH,),
        (Objective("math", "t", "bits", direction="minimize"), CODE),
        (MATH, CODE, Objective("chat", "t3", "acc", weight=0.0)),
    ],
    ids=["one", "loss", "three"],
)
def test_any_number_of_objectives(new, objectives):
    def score(x):
        return {"math": -float(x.sum()), "code": float(x[0]), "chat": float(x[1])}

    log = simulate(new(objectives=objectives), score, 40, warm=references(5, score))
    assert len(points(log)) == 40


@pytest.mark.parametrize("dim", [1, 2, 60])
def test_any_dimension(new, dim):
    log = simulate(new(dim=dim), two_bowls, 40, workers=2, warm=references(dim))
    assert all(x.shape == (dim,) for x in points(log))


@pytest.mark.parametrize(
    "bad",
    [
        {"dim": 0, "start": np.zeros(0)},
        {"seed": -1},
        {"objectives": ()},
        {"start": np.zeros(4)},
        {"start": np.full(5, 1.5)},
        {"start": np.full(5, np.nan)},
        {"start": None, "dim": 2.5},
    ],
    ids=str,
)
def test_nonsense_is_refused(bad):
    good = {"dim": 5, "seed": 0, "objectives": (MATH,), "start": np.full(5, 0.5)}
    with pytest.raises(ConfigError):
        Problem(**(good | bad))


def test_converges_on_a_quadratic(new, config):
    """Better than the median of random search; 200 trials, d = 6."""
    if config.stem == "random":
        pytest.skip("the yardstick itself")
    target = np.array([0.2, 0.8, 0.35, 0.6, 0.5, 0.1])

    def score(x):
        return {"math": 1 - float(np.mean((x - target) ** 2))}

    def value(x):
        return score(x)["math"]

    yardstick = np.median(
        [max(value(x) for x in np.random.default_rng(s).random((200, 6))) for s in range(9)]
    )
    for seed in (0, 1):
        log = simulate(new(dim=6, seed=seed, objectives=(MATH,)), score, 200, workers=4)
        assert best(log, value) > yardstick


def test_start_up_imports_neither_pycma_nor_pymoo():
    code = (
        "import sys, evomerge.pareto, evomerge.optimizers.cma_es, evomerge.optimizers.nsga2;"
        "print([m for m in ('cma', 'pymoo', 'scipy', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
