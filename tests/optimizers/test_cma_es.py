"""CMA-ES: known optima, warm starts, generations, restarts."""

import numpy as np
import pytest
from optimizer_fakes import MATH, best, make_trial, references, running, simulate

from evomerge.errors import ConfigError
from evomerge.optimizers.base import Problem, Yardstick
from evomerge.optimizers.cma_es import CmaEs, _losses
from evomerge.optimizers.cma_run import _bounds
from evomerge.trial import TrialState


def new(dim=6, **settings):
    start = settings.pop("start", np.full(dim, 0.5))
    return CmaEs(Problem(dim, 2, (MATH,), start), **settings)


def score_of(loss):
    return lambda x: {"math": -float(loss(x))}


@pytest.mark.parametrize("workers", [1, 8])
def test_rotated_ellipsoid(workers):
    rng = np.random.default_rng(0)
    Q, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    A, target = Q @ np.diag(100 ** np.linspace(-1, 0, 6)) @ Q.T, rng.uniform(0.2, 0.8, 6)

    def loss(x):
        return (x - target) @ A @ (x - target)

    log = simulate(new(), score_of(loss), 600, workers=workers)
    assert -best(log, lambda x: -loss(x)) < 1e-5


def test_optimum_on_the_boundary():
    """Half the coordinates at a bound, with the slope pointing past it."""
    target = np.array([-0.2, 0.4, -0.2, 0.7, 1.2, 0.5])
    floor = np.mean((np.clip(target, 0, 1) - target) ** 2)

    def loss(x):
        return np.mean((x - target) ** 2) - floor

    log = simulate(new(), score_of(loss), 600, workers=4)
    assert -best(log, lambda x: -loss(x)) < 1e-3


def test_start_in_a_corner():
    log = simulate(
        new(start=np.zeros(6)), score_of(lambda x: np.mean((x - 0.6) ** 2)), 300, workers=2
    )
    assert -best(log, lambda x: -np.mean((x - 0.6) ** 2)) < 1e-3


def test_learns_variances_in_many_dimensions():
    def loss(x):
        return np.mean((x - 0.3) ** 2)

    optimizer = new(dim=40)
    log = simulate(optimizer, score_of(loss), 400, workers=4)
    assert optimizer._run._now.axes is None
    assert -best(log, lambda x: -loss(x)) < 0.2 * loss(np.full(40, 0.5))


def test_mean_starts_at_the_best_reference_inside():
    optimizer = new(dim=30, sigma0=0.01)
    warm = references(30, lambda x: {"math": float(x[0])})  # the expert in the space is best
    optimizer.tell(warm)
    assert np.mean(optimizer.ask(40, 4)) > 0.95
    plain = new(dim=30, sigma0=0.01, start=np.full(30, 0.2))
    plain.tell(warm[:2])  # none of these lies in the space
    assert np.mean(plain.ask(40, 4)) == pytest.approx(0.2, abs=0.01)


def test_a_late_reference_that_is_better_begins_the_search_anew():
    """What was told before it would pull the mean back; a worse one changes nothing."""

    def score(x):
        return {"math": -float(np.mean((x - 0.5) ** 2))}

    warm = references(30, score)  # the average, told last, is best
    late = new(dim=30, sigma0=0.01, start=np.full(30, 0.2))
    pending = [running(t.number, t.x, kind="reference") for t in warm]
    for i in range(4, 94):
        (x,) = late.ask(1, i, pending)
        late.tell([make_trial(i, x, score(x))])
    updates, best = late._run.updates, late.ask(9, 99)
    assert updates > 3
    late.tell(warm[:3])  # an expert in the space, but a bad one
    assert late._run.updates == updates
    assert all(map(np.array_equal, late.ask(9, 99), best))
    late.tell(warm[3:])
    assert late._run.updates == 0
    first = new(dim=30, sigma0=0.01, start=np.full(30, 0.2))
    first.tell(warm)
    assert all(map(np.array_equal, late.ask(9, 99), first.ask(9, 99)))
    far = [make_trial(94 + i, np.full(30, 0.2), score(np.full(30, 0.2))) for i in range(30)]
    late.tell(far)  # asked before the average was told
    assert late._run.updates == 0


@pytest.mark.parametrize("bounds", [[0.0, 1.0], [[-1.0, 0.0], [2.0, 0.5]]])
def test_the_inverse_at_the_bounds_is_pycmas(bounds):
    from cma.boundary_handler import BoundTransform

    theirs, ours = BoundTransform(bounds), _bounds()(bounds)
    low, high = (np.resize(b, 2) for b in bounds)
    share = np.concatenate([[0, 1e-12, 0.5, 1], np.random.default_rng(0).random(500)])
    for y in low + share[:, None] * (high - low):
        np.testing.assert_allclose(ours.inverse(y), theirs.inverse(y), rtol=1e-15, atol=1e-16)
        np.testing.assert_allclose(ours.repair(ours.inverse(y)), y, atol=1e-12)
    with pytest.raises(ValueError, match="within the given bounds"):
        ours.inverse(high + 1e-9)


def test_failed_trials_are_no_part_of_a_generation():
    a, b = new(popsize=5), new(popsize=5)
    rng = np.random.default_rng(0)
    for number in range(20):
        x = rng.random(6)
        trial = make_trial(number, x, {"math": float(x[0])})
        a.tell([trial])
        b.tell([make_trial(50 + number, rng.random(6)), trial])
    assert np.array_equal(a.ask(1, 99)[0], b.ask(1, 99)[0])


def test_pruned_rank_below_every_complete():
    pruned = TrialState.PRUNED
    trials = [
        make_trial(0, [0.1], {"math": 0.9}, state=pruned),
        make_trial(1, [0.1], {"math": 0.2}),
        make_trial(2, [0.1], None, state=pruned),
        make_trial(3, [0.1], {"math": 0.5}),
        make_trial(4, [0.1], {"math": 0.3}, state=pruned),
    ]
    yardstick = Yardstick(Problem(1, 0, (MATH,), np.zeros(1)))
    losses = _losses(trials, yardstick)
    assert np.argsort(losses).tolist() == [3, 1, 0, 4, 2]
    assert np.isfinite(_losses([trials[2], trials[0]], yardstick)).all()


def test_restarts_after_convergence_and_goes_on():
    optimizer = new(dim=2, tolx=1e-2)
    log = simulate(optimizer, score_of(lambda x: np.sum((x - 0.3) ** 2)), 600, workers=4)
    assert optimizer._restarts >= 2
    assert optimizer._run.popsize == 6 * 2**optimizer._restarts
    last = np.array([t.x for t in log.told[-20:]])
    assert np.ptp(last) > 0.05, "a restart searches anew"


def test_two_basins_are_both_found_by_restarts():
    """A wide, worse basin around the start and a narrow, better one elsewhere."""

    def loss(x):
        return min(0.2 + np.mean((x - 0.5) ** 2), 4 * np.mean((x - 0.9) ** 2))

    log = simulate(new(dim=2, tolx=1e-2, sigma0=0.05), score_of(loss), 800, workers=2)
    assert -best(log, lambda x: -loss(x)) < 0.01


def test_one_trial_per_generation_is_the_mean():
    optimizer = new(popsize=6)
    log = simulate(optimizer, score_of(lambda x: np.mean((x - 0.6) ** 2)), 60)
    means = []
    replay = new(popsize=6)
    for i, t in enumerate(log.told):
        if i and i % 6 == 0:
            assert np.array_equal(t.x, replay._run.mean)
            means.append(t.x.tobytes())
        replay.tell([t])
    assert len(set(means)) == 9
    plain = new(popsize=6, evaluate_mean=False)
    plain.tell(log.told[:6])
    assert not np.array_equal(plain.ask(1, 6)[0], plain._run.mean)


def test_the_mean_is_asked_once_however_many_are_asked():
    optimizer = new(popsize=6)
    optimizer.tell(simulate(new(popsize=6), score_of(lambda x: np.mean(x**2)), 6).told)
    points = optimizer.ask(30, 6)
    assert sum(np.array_equal(x, optimizer._run.mean) for x in points) == 1


def test_bipop_alternates_by_what_was_spent():
    optimizer = new(dim=2, tolx=1e-2, restarts="bipop")
    sizes = []
    for trial in simulate(new(dim=2, tolx=1e-2, restarts="bipop"),
                          score_of(lambda x: np.sum((x - 0.3) ** 2)), 900).told:  # fmt: skip
        before = optimizer._restarts
        optimizer.tell([trial])
        if optimizer._restarts > before:
            sizes.append((optimizer._is_large, optimizer._run.popsize))
    large = [n for big, n in sizes if big]
    small = [n for big, n in sizes if not big]
    assert large == [6 * 2 ** (i + 1) for i in range(len(large))]
    assert len(small) >= 2
    assert max(small) <= max(6, max(large) // 2)
    spent = optimizer._spent
    assert spent[False] < 2 * spent[True] + 200


def test_without_restarts_it_stays_where_it_converged():
    optimizer = new(dim=2, tolx=1e-2, restarts="none", sigma0=0.1)
    log = simulate(optimizer, score_of(lambda x: np.sum((x - 0.3) ** 2)), 400)
    assert optimizer._restarts >= 1
    assert np.abs(np.mean([t.x for t in log.told[-30:]], axis=0) - 0.3).max() < 0.1


@pytest.mark.parametrize(
    "bad",
    [
        {"sigma0": 0},
        {"sigma0": 1.5},
        {"sigma0": "wide"},
        {"popsize": 2},
        {"popsize": 4.5},
        {"diagonal_above": -1},
        {"tolx": 0.0},
        {"restart_growth": 0.5},
        {"evaluate_mean": "yes"},
    ],
    ids=str,
)
def test_settings_are_validated(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        new(**bad)


def test_a_late_point_is_known_by_its_number_and_moved():
    """Half the mean's way, the mean trial too; foreign and fresh points stay where they are."""
    optimizer = new(popsize=6)
    old, middle = optimizer._run._now, optimizer._run.mean
    late = optimizer.ask(1, 50)[0]
    for number in range(12):
        (x,) = optimizer.ask(1, number)
        optimizer.tell([make_trial(number, x, {"math": -float(np.mean((x - 0.8) ** 2))})])
    run = optimizer._run
    gone = run._now.mean - old.mean
    assert run.updates == 2
    assert np.abs(gone).max() > 1e-3
    fresh, foreign = optimizer.ask(1, 13)[0], np.linspace(0.2, 0.7, 6)
    X = np.array([late, fresh, foreign, middle])
    draws = np.array([optimizer._draw(n) for n in (50, 13, 14, 15)])
    moved, share = run._caught_up(X, draws)
    assert share == 0.5
    assert np.allclose(moved[0], late + gone / 2)
    assert np.array_equal(moved[1], fresh)
    assert np.array_equal(moved[2], foreign)
    assert np.allclose(moved[3], middle + gone / 2)
    snapped = X[:1].copy()
    snapped[0, :2] = np.round(snapped[0, :2], 1)
    assert run._caught_up(snapped, draws[:1])[1] == 1.0
