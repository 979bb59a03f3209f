"""Bayesian optimisation: known optima, pending points, what is data."""

import dataclasses
import warnings

import numpy as np
import optuna
import pytest
import torch
from optimizer_fakes import CODE, MATH, best, make_trial, references, running, simulate, two_bowls

from evomerge import pareto
from evomerge.errors import ConfigError
from evomerge.optimizers.base import Problem
from evomerge.optimizers.bayesian import Bayesian
from evomerge.trial import Objective, Scores, TrialState


def new(dim=3, objectives=(MATH,), seed=2, **settings):
    return Bayesian(Problem(dim, seed, tuple(objectives), np.full(dim, 0.5)), **settings)


def hartmann(x):
    """Hartmann-3 (Dixon & Szego 1978), divided by its optimum 3.86278."""
    A = np.array([[3, 10, 30], [0.1, 10, 35], [3, 10, 30], [0.1, 10, 35]])
    P = 1e-4 * np.array(
        [[3689, 1170, 2673], [4699, 4387, 7470], [1091, 8732, 5547], [381, 5743, 8828]]
    )
    c = np.array([1.0, 1.2, 3.0, 3.2])
    return float(c @ np.exp(-(A * (x - P) ** 2).sum(axis=1))) / 3.86278


def directly(score, dim, n_trials, seed, directions=1):
    """Optuna's GPSampler used as its users do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(
            directions=["maximize"] * directions, sampler=optuna.samplers.GPSampler(seed=seed)
        )

        def objective(trial):
            x = np.array([trial.suggest_float(f"x{i}", 0, 1) for i in range(dim)])
            values = list(score(x).values())
            return values if directions > 1 else values[0]

        study.optimize(objective, n_trials)
    return np.array([t.values for t in study.trials])


def test_not_behind_the_sampler_used_directly_on_one_goal():
    ours, theirs = [], []
    for seed in range(3):
        log = simulate(new(seed=seed, n_startup=8), lambda x: {"math": hartmann(x)}, 28)
        ours.append(best(log, hartmann))
        theirs.append(directly(lambda x: {"math": hartmann(x)}, 3, 28, seed).max())
    assert np.median(ours) > 0.97
    assert np.median(ours) > np.median(theirs) - 0.01


def test_not_behind_the_sampler_used_directly_on_two_objectives():
    ours, theirs = [], []
    for seed in range(2):
        log = simulate(new(objectives=(MATH, CODE), seed=seed), two_bowls, 20)
        F = np.array([list(t.scores.values.values()) for t in log.told])
        ours.append(pareto.hypervolume(F, [0.7, 0.7]))
        theirs.append(pareto.hypervolume(directly(two_bowls, 3, 20, seed, 2), [0.7, 0.7]))
    assert np.median(ours) > 0.99 * np.median(theirs)


def test_design_is_start_then_space_filling():
    points = new(dim=2, n_startup=17).ask(17, 5)
    assert points[0].tolist() == [0.5, 0.5]
    assert len({tuple((x * 4).astype(int)) for x in points[1:]}) == 16


def test_points_are_conditioned_on_what_is_pending():
    optimizer = new(dim=2, n_startup=8)
    simulate(optimizer, lambda x: {"math": -float(np.sum((x - 0.3) ** 2))}, 12)
    alone = optimizer.ask(1, 12)[0]
    beside = optimizer.ask(1, 12, (running(99, alone),))[0]
    assert np.abs(alone - beside).max() > 1e-3


def test_constraints_are_kept():
    bounded = dataclasses.replace(CODE, search=False, bound=0.9)
    optimizer = new(dim=2, objectives=(MATH, bounded), n_startup=6)
    log = simulate(optimizer, two_bowls, 22)
    found = max(t.scores.values["math"] for t in log.told if t.scores.values["code"] >= 0.9)
    edge = 0.7 - 0.1**0.5
    assert found > 1 - (edge - 0.3) ** 2 - 0.01
    assert np.mean([t.scores.values["code"] >= 0.9 for t in log.told[-8:]]) >= 0.5


def test_scalarised_or_a_front():
    assert new(objectives=(MATH, CODE)).pareto
    assert not new(objectives=(MATH, CODE), scalarise=True).pareto
    assert not new().pareto


def test_what_is_data():
    optimizer = new(pruned_below=0.1)
    optimizer.tell(references(3))
    assert len(optimizer._data) == 2
    x = np.full(3, 0.9)
    optimizer.tell([make_trial(5, x)])
    rough = make_trial(6, x, {"math": 0.9}, state=TrialState.PRUNED)
    optimizer.tell([dataclasses.replace(rough, scores=Scores({"math": 0.9}, {"math": 0.5}, {}))])
    assert len(optimizer._data) == 2
    optimizer.tell([dataclasses.replace(rough, scores=Scores({"math": 0.9}, {"math": 0.01}, {}))])
    assert len(optimizer._data) == 3
    assert len(optimizer._seen) == 5
    # "0: never" holds for an estimate without any error, and one that lacks a bound says nothing.
    sure = dataclasses.replace(rough, scores=Scores({"math": 0.9}, {"math": 0.0}, {}))
    bounded = dataclasses.replace(CODE, search=False, bound=0.9)
    for never in (new(pruned_below=0.0), new(objectives=(MATH, bounded), pruned_below=0.1)):
        never.tell([sure])
        assert not never._data


def test_known_points_are_not_proposed_again():
    """A flat score, whose acquisition has nothing to say."""
    optimizer = new(dim=1, n_startup=2)
    log = simulate(optimizer, lambda x: {"math": 0.5}, 12)
    assert len({t.x.tobytes() for t in log.told}) == 12


def test_the_data_are_bounded():
    optimizer = new(max_data=10)
    rng = np.random.default_rng(0)
    told = [make_trial(i, rng.random(3), {"math": float(i % 17)}) for i in range(40)]
    optimizer.tell(told)
    kept = optimizer._kept()
    assert len(kept) == 10
    assert [t.number for t in kept] == sorted(t.number for t in kept)
    assert {t.number for t in kept} >= {16, 33, 39, 38}


def test_torch_keeps_its_random_state():
    optimizer = new(n_startup=3)
    state = torch.get_rng_state()
    simulate(optimizer, lambda x: {"math": float(x[0])}, 6)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "bad",
    [{"n_startup": 0}, {"scalarise": 1}, {"pruned_below": -1.0}, {"max_data": 5}],
    ids=str,
)
def test_settings_are_validated(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        new(**bad)


def test_many_goals_of_one_loss():
    loss = Objective("bits", "t", "bits", direction="minimize")
    log = simulate(new(objectives=(loss,)), lambda x: {"bits": -float(np.sum((x - 0.4) ** 2))}, 20)
    assert best(log, lambda x: -float(np.sum((x - 0.4) ** 2))) > -0.01
