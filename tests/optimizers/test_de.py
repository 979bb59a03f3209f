"""Differential evolution: known optima, slots, bounds."""

import numpy as np
import pytest
from optimizer_fakes import MATH, best, make_trial, references, simulate

from evomerge.errors import ConfigError, UnknownNameError
from evomerge.optimizers.base import Problem
from evomerge.optimizers.de import De
from evomerge.trial import TrialState


def new(dim=6, **settings):
    start = settings.pop("start", np.full(dim, 0.5))
    return De(Problem(dim, 2, (MATH,), start), **settings)


def score_of(loss):
    return lambda x: {"math": -float(loss(x))}


@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("strategy", ["current-to-pbest/1/bin", "rand/1/bin"])
def test_rotated_ellipsoid(workers, strategy):
    rng = np.random.default_rng(0)
    Q, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    A, target = Q @ np.diag(10 ** np.linspace(-1, 0, 6)) @ Q.T, rng.uniform(0.2, 0.8, 6)

    def loss(x):
        return (x - target) @ A @ (x - target)

    log = simulate(new(strategy=strategy), score_of(loss), 1500, workers=workers)
    assert -best(log, lambda x: -loss(x)) < (1e-5 if "best" in strategy else 2e-3)


def test_optimum_on_the_boundary():
    target = np.array([0.0, 0.4, 0.0, 0.7, 1.0, 0.5])
    log = simulate(new(), score_of(lambda x: np.mean((x - target) ** 2)), 1000, workers=4)
    assert -best(log, lambda x: -np.mean((x - target) ** 2)) < 1e-3


def test_design_is_start_then_space_filling():
    points = new(dim=2, start=np.array([0.3, 0.4])).ask(17, 5)
    assert points[0].tolist() == [0.3, 0.4]
    assert len({tuple((x * 4).astype(int)) for x in points[1:]}) == 16


def test_a_slot_keeps_the_better_of_its_trials():
    optimizer = new(pop_size=4)
    rng = np.random.default_rng(0)
    scores = rng.random(40)
    for i, value in enumerate(scores):
        optimizer.tell([make_trial(i, rng.random(6), {"math": float(value)})])
    kept = {s: t.scores.values["math"] for s, t in optimizer._slots.items()}
    assert kept == {s: scores[s::4].max() for s in range(4)}


def test_references_are_members_and_pruned_ones_never_the_best():
    optimizer = new()
    optimizer.tell(references(6))
    assert sorted(optimizer._slots) == [2, 3]
    glory = make_trial(9, np.full(6, 0.1), {"math": 9.0}, state=TrialState.PRUNED)
    optimizer.tell([glory])
    assert sorted(optimizer._slots) == [2, 3, 9]
    optimizer.tell([make_trial(29, np.full(6, 0.2), {"math": 9.5})])
    assert optimizer._slots[9].number == 29, "a measured score that is better takes the slot"
    optimizer.tell([make_trial(49, np.full(6, 0.1), {"math": 1.0}, state=TrialState.PRUNED)])
    assert optimizer._slots[9].number == 29
    optimizer.tell([make_trial(50, np.full(6, 0.1), {"math": 99.0}, state=TrialState.PRUNED)])
    assert optimizer._best_first()[-1] == 10


@pytest.mark.parametrize(
    "bad",
    [
        {"pop_size": 3},
        {"scale": 0.5},
        {"scale": [0.9, 0.5]},
        {"scale": [0.0, 0.5]},
        {"crossover": 1.5},
        {"p_best": 0.0},
    ],
    ids=str,
)
def test_settings_are_validated(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        new(**bad)


def test_unknown_strategy():
    with pytest.raises(UnknownNameError, match="rand/1/bin"):
        new(strategy="rand/2/bin")
