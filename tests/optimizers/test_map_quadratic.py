"""MAP: surrogates with a known truth, the design, the predicted front, the variants."""

import dataclasses

import numpy as np
import pytest
from optimizer_fakes import CODE, MATH, best, make_trial, references, running, simulate, two_bowls

from evomerge import pareto
from evomerge.errors import ConfigError, UnknownNameError
from evomerge.geometry import Geometry
from evomerge.optimizers import surrogate
from evomerge.optimizers.base import Problem
from evomerge.optimizers.map_quadratic import MapQuadratic
from evomerge.optimizers.nested import Experts
from evomerge.optimizers.quadratic_form import FORMS, n_terms
from evomerge.trial import Scores, TrialState

RNG = np.random.default_rng(0)


def new(dim=3, objectives=(MATH, CODE), seed=2, geometry=None, **settings):
    problem = Problem(dim, seed, tuple(objectives), np.full(dim, 0.4), geometry=geometry)
    return MapQuadratic(problem, **settings)


def sigmoid_quadratic(dim, seed=0):
    """MAP's own model of an accuracy: sigmoid of a full quadratic."""
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((dim, dim))
    A, b, e = -(A @ A.T), 3 * rng.standard_normal(dim), rng.standard_normal()

    def score(X):
        X = np.atleast_2d(X)
        eta = e + X @ b + np.einsum("ij,jk,ik->i", X, A, X)
        return 1 / (1 + np.exp(-eta))

    return score


# ---- surrogates


@pytest.mark.parametrize("dim", [2, 3, 5])
def test_a_sigmoid_quadratic_is_recovered_exactly(dim):
    truth = sigmoid_quadratic(dim)
    X = RNG.random((2 * n_terms("full", dim), dim))
    model = surrogate.fit(X, truth(X))
    assert model.name == "full quadratic, sigmoid"
    assert model.r2 > 1 - 1e-6
    fresh = RNG.random((200, dim))
    assert np.abs(model.predict(fresh)[0] - truth(fresh)).max() < 1e-3


def test_a_softplus_loss_is_recovered():
    X = RNG.random((40, 3))
    eta = 2 - 3 * X[:, 0] + 4 * (X[:, 1] - 0.5) ** 2
    model = surrogate.fit(X, np.log1p(np.exp(eta)), kinds=["full"], links=["softplus"])
    assert model.r2 > 1 - 1e-6


def test_leave_one_out_is_leave_one_out():
    """The formula against fits without each point."""
    X = RNG.random((25, 2))
    y = 1 + X @ [2.0, -1.0] + 0.3 * RNG.standard_normal(25)
    model = surrogate.fit(X, y, kinds=["linear"], links=["identity"])
    design = np.column_stack([np.ones(25), X])
    left = [
        design[i] @ np.linalg.lstsq(np.delete(design, i, 0), np.delete(y, i), rcond=None)[0]
        for i in range(25)
    ]
    assert model.r2 == pytest.approx(surrogate.loo_r2(y, np.array(left)), abs=0.02)


def test_the_process_is_chosen_where_a_quadratic_is_wrong():
    X = RNG.random((60, 2))
    y = np.sin(9 * X[:, 0]) * np.cos(7 * X[:, 1])
    model = surrogate.fit(X, y)
    assert model.name == "Gaussian process, identity"
    quadratic = surrogate.fit(X, y, kinds=FORMS)
    assert model.r2 > quadratic.r2 + 0.2
    fresh = RNG.random((200, 2))
    mean, deviation = model.predict(fresh)
    truth = np.sin(9 * fresh[:, 0]) * np.cos(7 * fresh[:, 1])
    assert np.mean((mean - truth) ** 2) < 0.05
    near, far = model.predict(X[:5])[1], model.predict(X[:5] + 1.5)[1]
    assert (near < far).all()
    assert np.mean(np.abs(mean - truth) < 2 * deviation + 1e-3) > 0.85


def test_noise_alone_is_not_fitted():
    X = np.random.default_rng(1).random((30, 3))
    y = np.random.default_rng(2).standard_normal(30)
    assert surrogate.fit(X, y).r2 < 0.35
    assert surrogate.fit(X, np.full(30, 0.5)).name == surrogate.CONSTANT
    assert surrogate.fit(X[:2], y[:2]).name == surrogate.CONSTANT


def test_many_dimensions_take_the_small_forms():
    X = RNG.random((60, 200))
    y = X[:, 0] - X[:, 1]
    assert "full" not in surrogate.fit(X, y).name


# ---- the optimizer


def test_design_is_start_experts_alone_and_space_filling():
    points = new(dim=2, n_design=8).ask(8, 0)
    assert points[0].tolist() == [0.4, 0.4]
    assert {tuple(x) for x in points[1:3]} == {(1.0, 0.0), (0.0, 1.0)}
    assert len({tuple((x * 4).astype(int)) for x in points[3:]}) == 5


def test_workers_are_never_left_waiting_for_the_design():
    optimizer = new(n_design=6)
    pending = tuple(running(i, x) for i, x in enumerate(optimizer.ask(6, 0)))
    assert len(optimizer.ask(20, 6, pending)) == 20


def test_it_knows_how_well_it_predicts():
    optimizer = new(n_design=12)
    assert optimizer.surrogates == {}
    assert optimizer.note == ""
    simulate(optimizer, two_bowls, 14)
    assert set(optimizer.surrogates) == {"math", "code"}
    assert all(s.r2 > 0.99 for s in optimizer.surrogates.values())
    assert "math 1.00 (diagonal quadratic" in optimizer.note


def front_error(told):
    """Mean distance of the measured front of two bowls from the line between their optima."""
    F = np.array([[t.scores.values[n] for n in ("math", "code")] for t in told])
    X = np.array([t.x for t in told])[pareto.non_dominated(F)]
    along = np.clip((X - 0.3).mean(axis=1) / 0.4, 0, 1)[:, None]
    return float(np.abs(X - (0.3 + 0.4 * along)).mean()), len(X)


@pytest.mark.parametrize("variant", ["plain", "bayesian"])
@pytest.mark.parametrize("workers", [1, 6])
def test_measures_the_front_that_it_predicts(variant, workers):
    log = simulate(new(variant=variant), two_bowls, 40, workers=workers)
    error, size = front_error(log.told)
    assert error < 0.06
    assert size >= 10


def test_pending_points_are_spread_away_from():
    optimizer = new(n_design=10)
    simulate(optimizer, two_bowls, 10)
    batch = optimizer.ask(8, 10)
    gaps = [np.abs(a - b).max() for i, a in enumerate(batch) for b in batch[:i]]
    assert min(gaps) > 0.02
    again = optimizer.ask(1, 18, tuple(running(10 + i, x) for i, x in enumerate(batch)))[0]
    assert all(np.abs(again - x).max() > 0.02 for x in batch)


def test_one_objective_is_maximised():
    def loss(x):
        return np.mean((x - [0.2, 0.8, 0.5]) ** 2)

    log = simulate(new(objectives=(MATH,)), lambda x: {"math": 1 - float(loss(x))}, 30)
    assert best(log, lambda x: -float(loss(x))) > -1e-3


def test_constraints_hold_on_the_front():
    bounded = dataclasses.replace(CODE, search=False, bound=0.95)
    log = simulate(new(objectives=(MATH, bounded)), two_bowls, 40)
    late = [t.scores.values["code"] >= 0.95 for t in log.told[-15:]]
    assert np.mean(late) > 0.5
    found = max(t.scores.values["math"] for t in log.told if t.scores.values["code"] >= 0.95)
    edge = 0.7 - 0.05**0.5  # on the diagonal: code is 0.95 there
    assert found > 1 - (edge - 0.3) ** 2 - 0.01


def test_the_paper_itself_can_be_had():
    optimizer = new(variant="plain", surrogates=["full"], links=["sigmoid"], n_design=20)
    truths = {"math": sigmoid_quadratic(3, 1), "code": sigmoid_quadratic(3, 2)}
    simulate(optimizer, lambda x: {k: float(f(x)[0]) for k, f in truths.items()}, 24)
    assert all(s.r2 > 1 - 1e-6 for s in optimizer.surrogates.values())


# ---- nested


def test_nested_pairs_experts_and_then_searches_the_whole_space():
    target = np.array([0.9, 0.1, 0.6, 0.1, 0.4, 0.1])

    def score(x):
        return {"math": 1 - float(np.mean((x - target) ** 2))}

    optimizer = new(dim=6, objectives=(MATH,), variant="nested", n_pair=4)
    log = simulate(optimizer, score, 40)
    first = {tuple(t.x) for t in log.told[:7]}
    assert first == {tuple(row) for row in np.vstack([np.zeros(6), np.eye(6)])}
    assert all((t.x > 0).sum() <= 2 for t in log.told[7:19]), "the first pairs"
    assert optimizer._open_tournament is None
    assert best(log, lambda x: score(x)["math"]) > 0.985


def test_nested_does_not_wait_for_what_references_measured():
    optimizer = new(dim=4, objectives=(MATH,), variant="nested")
    points = np.vstack([np.zeros(4), np.eye(4)])
    for number, x in enumerate(points):
        scores = {"math": 1 - float(np.mean((x - 0.3) ** 2))}
        optimizer.tell([make_trial(number, x, scores, kind="reference")])
    (x,) = optimizer.ask(1, 5)
    optimizer.tell([make_trial(5, x, {"math": 0.5})])
    assert all(0 < (x > 0).sum() <= 2 for x in optimizer.ask(4, 6)), "the first pairs"


def test_nested_reads_experts_off_the_geometry():
    """Two experts in three groups: six axes, three for each."""
    d = 6
    geometry = Geometry(
        np.tile(np.eye(2), (3, 1, 1)), np.ones(3), np.eye(d), np.zeros(d), np.full(d, 1.5)
    )
    problem = Problem(d, 0, (MATH,), np.full(d, 0.4), geometry=geometry)
    experts = Experts.of(problem)
    assert experts.axes.sum(axis=1).tolist() == [3, 3]
    assert experts.alone[0] == pytest.approx(np.tile([2 / 3, 0], 3))
    shared = dataclasses.replace(
        geometry, matrix=np.ones((6, 1)), low=np.zeros(1), high=np.ones(1)
    )
    with pytest.raises(ConfigError, match="nested"):
        MapQuadratic(Problem(1, 0, (MATH,), np.full(1, 0.4), geometry=shared), variant="nested")
    with pytest.raises(ConfigError, match="two or more"):
        new(dim=1, variant="nested")


def test_failed_and_pruned_are_not_fitted():
    optimizer = new(n_design=8)
    told = simulate(optimizer, two_bowls, 8).told
    plain = [x.tolist() for x in optimizer.ask(3, 9)]
    other = new(n_design=8)
    other.tell(told)
    glory = {"math": 9.0, "code": 9.0}
    far = np.full(3, 0.999)
    other.tell([make_trial(8, far, glory, state=TrialState.PRUNED)])
    assert [s.r2 for s in other.surrogates.values()] == [
        s.r2 for s in optimizer.surrogates.values()
    ]
    assert len(plain) == 3
    assert len(other._scored) == len(other._data) == 8, "nothing is known of its error"
    known = Scores({"math": 0.5, "code": 0.5}, {"math": 0.01, "code": 0.01}, {})
    sure = make_trial(9, far, state=TrialState.PRUNED)
    other.tell([dataclasses.replace(sure, scores=known)])
    assert (len(other._scored), len(other._data)) == (8, 9)


def test_references_are_data():
    optimizer = new(dim=5, n_design=8)
    optimizer.tell(references(5))
    assert len(optimizer._scored) == 2


@pytest.mark.parametrize(
    "bad",
    [
        {"n_design": 3},
        {"n_refine": 0},
        {"n_pair": 0},
        {"surrogates": []},
        {"surrogates": "full"},
        {"optimism": -1},
        {"min_distance": 1.5},
        {"n_generations": 0},
    ],
    ids=str,
)
def test_settings_are_validated(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        new(**bad)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"variant": "wild"}, "unknown variant 'wild'"),
        ({"surrogates": ["cubic"]}, "unknown surrogates 'cubic'"),
        ({"links": ["probit"]}, "unknown links 'probit'"),
    ],
    ids=str,
)
def test_unknown_names(bad, words):
    with pytest.raises(UnknownNameError, match=words):
        new(**bad)
