"""The laws that every optimizer keeps; see evomerge/optimizers/base.py.

Numbers of trials go through ``new.n``: where one ask takes long, fewer say the same.
"""

import functools
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from optimizer_fakes import (
    CODE,
    MATH,
    best,
    make_trial,
    race,
    references,
    running,
    simulate,
    two_bowls,
)

import evomerge.optimizers
from evomerge.errors import ConfigError
from evomerge.optimizers.base import Problem
from evomerge.trial import Objective, TrialState

SIZE = Objective("size", "t", "n", direction="minimize", search=False, bound=0.5)
"""Must stay below 0.5; is not optimised."""
BOUNDED_CODE = Objective("code", "t2", "acc", bound=-0.5)
"""Optimised, and must reach -0.5."""


def same(a, b):
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def points(log):
    return [x for *_, xs in log.asks for x in xs]


@functools.cache
def troubled(new):
    """A run with failures, pruned trials, references and out-of-order completion."""
    n = new.n(70)
    return simulate(
        new(), two_bowls, n, workers=4, seed=5, fail=0.15, prune=0.1, warm=references(new.dim)
    )


@functools.cache
def ignores_scores(new):
    """Whether a driver proposes the same points whatever the scores are."""
    a, b = (
        points(
            simulate(
                new(),
                lambda x, s=sign: {k: s * v for k, v in two_bowls(x).items()},
                new.n(60),
            )
        )
        for sign in (1, -1)
    )
    return same(a, b)


def test_points_are_fresh_float_vectors_of_the_unit_cube(new):
    log = simulate(new(), two_bowls, new.n(60), workers=3, warm=references(new.dim))
    assert len(points(log)) == new.n(60)
    for x in points(log):
        assert x.shape == (new.dim,)
        assert x.dtype == np.float64
        assert ((x >= 0) & (x <= 1)).all()
        assert x.flags.writeable
    assert len({x.tobytes() for x in points(log)}) == new.n(60)


def test_points_do_not_alias_the_state(new):
    a, b = new(), new()
    for number in range(new.n(40)):
        x, y = a.ask(1, number)[0], b.ask(1, number)[0]
        assert np.array_equal(x, y)
        values = two_bowls(y)
        x[:] = 9.0  # what a caller does with its point is its own business
        a.tell([make_trial(number, y, values)])
        b.tell([make_trial(number, y, values)])


def test_same_seed_same_points_and_other_seeds_differ(new):
    n = new.n(40)
    runs = {
        seed: points(simulate(new(seed=seed), two_bowls, n, workers=2, warm=references(new.dim)))
        for seed in (0, 1)
    }
    again = points(simulate(new(seed=0), two_bowls, n, workers=2, warm=references(new.dim)))
    assert same(runs[0], again)
    assert not same(runs[0][-n // 2 :], runs[1][-n // 2 :])


def test_interleaved_instances_do_not_interfere(new):
    alone = points(simulate(new(seed=3), two_bowls, new.n(40)))
    a, b = new(seed=3), new(seed=4)
    got = []
    for number in range(new.n(40)):
        for optimizer in (b, a):
            x = optimizer.ask(1, number)[0]
            optimizer.tell([make_trial(number, x, two_bowls(x))])
            if optimizer is a:
                got.append(x)
    assert same(alone, got)


def test_telling_at_once_equals_telling_in_parts(new):
    told = troubled(new).told[: new.n(49)]
    whole = new()
    whole.tell(told)
    n = 2 if new.expensive else 4
    asked = whole.ask(n, 90)
    for cut in (1, 6) if new.expensive else (0, 1, 4, 20, 49):
        parts = new()
        parts.tell(told[:cut])
        parts.tell(told[cut:])
        assert same(asked, parts.ask(n, 90))


@pytest.mark.parametrize("told", [0, 3, 4, 17, 40, 60])
def test_ask_law(new, told):
    optimizer = new()
    optimizer.tell(troubled(new).told[:told])
    rng = np.random.default_rng(told)
    pending = tuple(running(100 + i, rng.random(new.dim)) for i in range(told % 4))
    together = optimizer.ask(5, 200, pending)
    one = optimizer.ask(1, 200, pending)
    rest = optimizer.ask(4, 201, (*pending, running(200, one[0])))
    assert same(together, [*one, *rest])
    assert same(together, optimizer.ask(5, 200, pending)), "ask must leave no trace"


def test_resume_by_replay(new):
    """At any moment: in the middle of a generation, with results out of order and missing."""
    log = troubled(new)
    for told, first, n, pending, asked in log.asks[:: 3 if new.expensive else 6]:
        fresh = new()
        fresh.tell(log.told[:told])
        assert same(fresh.ask(n, first, pending), asked)


def test_reference_points_may_be_told_late(new):
    """Workers are not left waiting for them: there are points beside them, under the same laws."""
    late, n = references(new.dim), new.n(40)
    log = simulate(new(), two_bowls, n, workers=7, late=late)
    assert len(points(log)) == n
    asked = [a for a in log.asks if any(t.kind == "reference" for t in a[3])]
    assert sum(len(a[4]) for a in asked) >= 3
    for told, first, k, pending, xs in asked:
        fresh = new()
        fresh.tell(log.told[:told])
        assert same(fresh.ask(k, first, pending), xs), "resume by replay"
        one = fresh.ask(1, first, pending)
        beside = tuple(running(first + i, x) for i, x in enumerate(one))
        rest = fresh.ask(k - 1, first + 1, (*pending, *beside)) if k > 1 and one else []
        assert same([*one, *rest], xs), "the ask law"


def test_failures_are_tolerated_and_never_best(new):
    dim, n = min(new.dim, 3), new.n(60)
    optimizer = new(dim=dim)
    rng = np.random.default_rng(0)
    for number in range(n):  # everything near the optimum fails
        x = optimizer.ask(1, number)[0]
        values = two_bowls(x) if np.abs(x - 0.5).max() > 0.25 else None
        optimizer.tell([make_trial(number, x, values)])
    assert len(optimizer.ask(3, n)) == 3
    # A FAILED trial that carries glorious scores by mistake changes nothing but what is known
    # to have been tried.
    told = [make_trial(i, x, two_bowls(x)) for i, x in enumerate(rng.random((30, dim)))]
    plain, glorious = new(dim=dim), new(dim=dim)
    x = np.full(dim, 0.9)
    plain.tell([*told, make_trial(30, x)])
    glorious.tell([*told, make_trial(30, x, {"math": 9.0, "code": 9.0}, state=TrialState.FAILED)])
    assert same(plain.ask(5, 31), glorious.ask(5, 31))


def test_all_failed(new):
    optimizer = new()
    log = simulate(optimizer, two_bowls, 50, workers=4, fail=1.0)
    assert len(points(log)) == 50
    optimizer.tell([make_trial(50, None)])
    assert len(optimizer.ask(2, 51)) == 2


@pytest.mark.parametrize(
    ("prune", "score"),
    [
        (1.0, two_bowls),
        (0.0, lambda x: {"math": 0.25, "code": 0.25}),
        (0.3, lambda x: {"math": round(float(x[0])), "code": 0.0}),
    ],
    ids=["all pruned", "all equal", "plateaus"],
)
def test_all_pruned_and_flat_scores(new, prune, score):
    n = new.n(150)
    log = simulate(new(), score, n, workers=2, prune=prune)
    assert len(points(log)) == n
    assert np.isfinite(points(log)).all()


def test_inputs_are_not_mutated(new):
    start = np.full(new.dim, 0.5)
    optimizer = new(start=start)
    told = list(troubled(new).told)
    before = [(t.x.copy() if t.x is not None else None) for t in told]
    optimizer.tell(told)
    pending = [running(90, np.full(new.dim, 0.2))]
    optimizer.ask(3, 91, pending)
    assert told == troubled(new).told
    assert len(pending) == 1
    assert (pending[0].x == 0.2).all()
    for x, t in zip(before, told, strict=True):
        assert (x is None and t.x is None) or np.array_equal(x, t.x)
    assert (start == 0.5).all()


def test_global_state_is_untouched(new):
    def state():
        _, numbers, *rest = np.random.get_state()  # noqa: NPY002
        return (
            numbers.tolist(),
            rest,
            random.getstate(),
            torch.get_rng_state().tolist(),
            torch.get_num_threads(),
            np.geterr(),
        )

    before = state()
    simulate(new(), two_bowls, new.n(40), workers=2, warm=references(new.dim))
    assert state() == before


def test_silent_and_leaves_no_files(new, capfd, tmp_path, monkeypatch, recwarn):
    monkeypatch.chdir(tmp_path)
    flat = lambda x: {"math": 0.5, "code": 0.5}  # noqa: E731
    simulate(new(), flat, new.n(60), workers=2)
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())
    assert not recwarn.list


def test_references_outside_the_space_and_foreign_trials(new):
    plain, noisy = new(), new()
    told, x = references(new.dim), np.full(new.dim, 0.1)
    plain.tell(told)
    noisy.tell([make_trial(0, x, {"math": 1.0, "code": 1.0}, split="test")])
    noisy.tell(told)
    noisy.tell([make_trial(1, x, {"math": 1, "code": 1}, kind="final")])
    assert same(plain.ask(4, 4), noisy.ask(4, 4, (running(2, x, kind="final"),)))
    noisy.tell([make_trial(9, None, {"math": 1.0, "code": 1.0})])
    assert len(noisy.ask(2, 10)) == 2


CHAT = Objective("chat", "t3", "acc", weight=0.0)


@pytest.mark.parametrize(
    "objectives",
    [
        (MATH,),
        (Objective("math", "t", "bits", direction="minimize"), CODE),
        (MATH, CODE, CHAT),
        (MATH, CODE, CHAT, Objective("o4", "t", "acc"), Objective("o5", "t", "acc")),
        (MATH, Objective("code", "t", "acc", search=False, bound=0.4)),
        (MATH, Objective("code", "t", "acc", bound="80%"), CHAT),
    ],
    ids=["one", "loss", "three", "five", "bounded", "bounded_too"],
)
def test_any_number_of_objectives(new, objectives):
    def score(x):
        chat = {"chat": float(x[-1]), "o4": float(x[0] * x[-1]), "o5": -float(np.abs(x).max())}
        return {"math": -float(x.sum()), "code": float(x[0])} | chat

    n = new.n(40)
    log = simulate(new(objectives=objectives), score, n, warm=references(new.dim, score))
    assert len(points(log)) == n


@pytest.mark.parametrize("scalarisation", ["worst", "chebyshev"])
def test_any_scalarisation(new, scalarisation):
    log = simulate(new(scalarisation=scalarisation), two_bowls, new.n(30))
    assert len(points(log)) == new.n(30)


@pytest.mark.parametrize("dim", [1, 2, 24, 400])
def test_any_dimension(new, dim):
    if new.max_dim is not None and dim > new.max_dim:
        with pytest.raises(ConfigError, match=str(new.max_dim)):
            new(dim=dim)
        return
    log = simulate(new(dim=dim), two_bowls, new.n(40), workers=2, warm=references(dim))
    assert all(x.shape == (dim,) for x in points(log))
    for told, first, n, pending, asked in log.asks[-2:]:
        fresh = new(dim=dim)
        fresh.tell(log.told[:told])
        assert same(fresh.ask(n, first, pending), asked)


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


def test_converges_on_a_quadratic(new):
    """Better than the median of random search; 200 trials (expensive drivers: 20), d = 6."""
    if ignores_scores(new):
        pytest.skip("a yardstick itself")
    target = np.array([0.2, 0.8, 0.35, 0.6, 0.5, 0.1])

    def score(x):
        return {"math": 1 - float(np.mean((x - target) ** 2))}

    def value(x):
        return score(x)["math"]

    yardstick = np.median(
        [max(value(x) for x in np.random.default_rng(s).random((200, 6))) for s in range(9)]
    )
    n, workers = (20, 1) if new.expensive else (200, 4)
    for seed in (0, 1)[: 1 if new.expensive else 2]:
        log = simulate(new(dim=6, seed=seed, objectives=(MATH,)), score, n, workers=workers)
        assert best(log, value) > yardstick


@pytest.mark.parametrize("objectives", [(MATH,), (MATH, CODE)], ids=["one", "two"])
def test_a_raced_search_still_finds_its_way(new, objectives):
    """Most trials are PRUNED, and still the best is better than random search's median."""
    if ignores_scores(new) or getattr(new.cls, "needs_documents", False):
        pytest.skip("looks at no score, or refuses to be raced")
    names = {o.name for o in objectives}

    def score(x):
        return {k: v for k, v in two_bowls(x).items() if k in names}

    def value(x):
        return sum(score(x).values())

    n, start = 14 if new.expensive else 160, np.full(5, 0.9)
    log = race(new(dim=5, objectives=objectives, start=start), score, n)
    pruned = sum(t.state is TrialState.PRUNED for t in log.told)
    assert pruned >= n / 3
    assert len({t.x.tobytes() for t in log.told}) == n
    yardstick = np.median(
        [max(value(x) for x in np.random.default_rng(s).random((n, 5))) for s in range(9)]
    )
    assert best(log, value) > yardstick
    fresh = new(dim=5, objectives=objectives, start=start)
    fresh.tell(log.told[: n // 2])
    assert np.array_equal(fresh.ask(1, n // 2)[0], log.told[n // 2].x), "resume by replay"


@pytest.mark.parametrize("bounded", [SIZE, BOUNDED_CODE], ids=["not_optimised", "optimised"])
def test_constraints_steer_the_search(new, bounded):
    """The best math, at 0.8 everywhere, needs a mean of x above the bound of 0.5.

    The late points are feasible more often than without the bound, and the best feasible one beats
    random search. Resume by replay holds here too.
    """
    if ignores_scores(new):
        pytest.skip("a yardstick, which looks at no score")

    def value(x):
        return 1 - float(np.mean((x - 0.8) ** 2))

    def score(x):
        size = float(np.mean(x))
        return {"math": value(x), "size": -size, "code": -size}

    def feasible(x):
        return bool(np.mean(x) <= 0.5)

    n, workers = (20, 1) if new.expensive else (180, 3)
    free = Objective(bounded.name, "t", "n", bounded.direction, weight=0.0, search=bounded.search)
    held = simulate(new(objectives=(MATH, bounded)), score, n, workers=workers)
    wild = simulate(new(objectives=(MATH, free)[: 1 + free.search]), score, n, workers=workers)
    late = [np.mean([feasible(x) for x in points(log)[-n // 3 :]]) for log in (held, wild)]
    assert late[0] > min(late[1] + 0.1, 0.95)

    def goal(x):  # a single-objective driver optimises the mean of both where both count
        both = bounded.search and not new(objectives=(MATH, bounded)).pareto
        return value(x) - float(np.mean(x)) if both else value(x)

    yardstick = np.median(
        [
            max(goal(x) for x in np.random.default_rng(s).random((180, new.dim)) if feasible(x))
            for s in range(9)
        ]
    )
    assert max(goal(t.x) for t in held.told if feasible(t.x)) > yardstick
    for told, first, k, pending, asked in held.asks[:: n // (2 if new.expensive else 6)]:
        fresh = new(objectives=(MATH, bounded))
        fresh.tell(held.told[:told])
        assert same(fresh.ask(k, first, pending), asked)


def test_start_up_imports_nothing_heavy():
    """Every file of the room: ``evomerge --help`` and a typo should not cost seconds."""
    names = sorted(p.stem for p in Path(evomerge.optimizers.__file__).parent.glob("[!_]*.py"))
    code = (
        "import sys\n"
        + "".join(f"import evomerge.optimizers.{name}\n" for name in names)
        + "heavy = ('cma', 'optuna', 'pymoo', 'scipy', 'sklearn', 'torch')\n"
        + "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
