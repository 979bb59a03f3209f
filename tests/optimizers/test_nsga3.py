"""NSGA-III: a known front in five objectives, directions, scaling, niches."""

import numpy as np
import pytest
from optimizer_fakes import MATH, make_trial, references, simulate

from evomerge import pareto
from evomerge.errors import ConfigError
from evomerge.optimizers.base import Problem
from evomerge.optimizers.nsga2 import Nsga2
from evomerge.optimizers.nsga3 import Nsga3, directions, scaling
from evomerge.trial import Objective, TrialState


def objectives(m):
    return tuple(Objective(f"o{i}", "t", "acc") for i in range(m))


def new(m=3, dim=6, cls=Nsga3, seed=2, **settings):
    return cls(Problem(dim, seed, objectives(m), np.full(dim, 0.3)), **settings)


def dtlz2(m):
    """DTLZ2 (Deb et al. 2005), negated; the front is the sphere's quadrant, x[m - 1:] = 0.5."""

    def score(x):
        values = np.full(m, 1 + float(np.sum((x[m - 1 :] - 0.5) ** 2)))
        for i in range(m):
            values[i] *= np.prod(np.cos(x[: m - 1 - i] * np.pi / 2))
            values[i] *= np.sin(x[m - 1 - i] * np.pi / 2) if i else 1.0
        return {f"o{i}": -float(v) for i, v in enumerate(values)}

    return score


def volume(log, m):
    F = np.array([list(t.scores.values.values()) for t in log.told])
    return pareto.hypervolume(F[pareto.non_dominated(F)], np.full(m, -1.1))


def test_five_objectives():
    """What it is for: crowding distance says little there (measured: 0.85 against 0.57)."""
    ours, crowding = (
        volume(simulate(new(5, 10, cls, pop_size=50), dtlz2(5), 500, workers=4), 5)
        for cls in (Nsga3, Nsga2)
    )
    assert ours > crowding + 0.1


@pytest.mark.parametrize(("m", "least"), [(1, 0.097), (2, 0.35), (3, 0.45)])
def test_known_fronts(m, least):
    """Exact: 0.1 for one objective (the front is the point 1), 1.21 - pi / 4 = 0.425 for two."""
    log = simulate(new(m), dtlz2(m), 400, workers=3)
    assert volume(log, m) > least


@pytest.mark.parametrize(
    ("m", "n", "found"),
    [(1, 24, 1), (2, 24, 24), (3, 24, 21), (5, 24, 20), (5, 50, 50), (10, 24, 20), (10, 4, 10)],
)
def test_directions(m, n, found):
    D = directions(m, n)
    assert D.shape == (found, m)
    assert np.allclose(D.sum(axis=1), 1)
    assert (D > -1e-12).all()
    assert len(np.unique(D.round(9), axis=0)) == found
    if m > 1:
        assert np.array_equal(D[D.max(axis=1) > 1 - 1e-9].sum(axis=0), np.ones(m)), "every axis"


def test_scaling_is_the_plane_through_the_extremes():
    F = np.array([[0.0, -4.0], [-2.0, 0.0], [-0.5, -0.5], [-3.0, -3.9]])
    ideal, span = scaling(F, F[:3])
    assert ideal.tolist() == [0, 0]
    assert np.allclose(span, [2, 4])


@pytest.mark.parametrize(
    "F",
    [[[1.0, 2.0]], [[0.0, 1.0], [0.0, 1.0]], [[0.0, 5.0], [1.0, 5.0]], [[0.0, 0.0], [1.0, 1.0]]],
    ids=["one", "equal", "constant", "one dominates"],
)
def test_scaling_of_degenerate_fronts(F):
    F = np.array(F)
    ideal, span = scaling(F, F[pareto.non_dominated(F)])
    assert np.isfinite(ideal).all()
    assert (span > 0).all()


def test_units_do_not_matter():
    """The same search with objectives in thousandths and in millions."""
    logs = []
    for factors in ((1.0, 1.0, 1.0), (0.125, 2.0**20, 1.0)):  # powers of two: exact

        def score(x, factors=factors):
            return {k: v * f for (k, v), f in zip(dtlz2(3)(x).items(), factors, strict=True)}

        logs.append(simulate(new(), score, 120))
    assert all(np.array_equal(s.x, t.x) for s, t in zip(logs[0].told, logs[1].told, strict=True))


def test_the_crowded_niche_loses_its_furthest_point():
    optimizer = new(2, 2, pop_size=3)  # directions (1, 0), (1/2, 1/2), (0, 1)
    rows = [(-1.0, 0.0), (0.0, -1.0), (-0.5, -0.5), (-0.4, -0.55)]
    for i, (a, b) in enumerate(rows):
        optimizer.tell([make_trial(i, np.full(2, i / 9), {"o0": a, "o1": b})])
    assert [t.number for t in optimizer._members] == [0, 1, 2]


def test_feasible_points_push_infeasible_ones_out():
    bounded = Objective("code", "t2", "acc", search=False, bound=0.5)
    optimizer = Nsga3(Problem(2, 0, (MATH, bounded), np.full(2, 0.5)), pop_size=3)
    rows = [(9.0, 0.1), (9.0, 0.2), (9.0, 0.3), (9.0, 0.4), (0.1, 0.6), (0.2, 0.5)]
    optimizer.tell(
        [make_trial(i, np.full(2, i / 9), {"math": m, "code": c}) for i, (m, c) in enumerate(rows)]
    )
    assert [t.number for t in optimizer._members] == [3, 4, 5]
    assert optimizer._better(0, 1) == optimizer._better(1, 0) == 1


def test_references_are_members_and_pruned_ones_stand_behind():
    optimizer = Nsga3(Problem(6, 2, (MATH,), np.full(6, 0.5)))
    optimizer.tell(references(6))
    optimizer.tell([make_trial(9, np.full(6, 0.1), {"math": 9}, state=TrialState.PRUNED)])
    assert optimizer._rank.tolist()[2] > max(optimizer._rank[:2])
    assert len(optimizer._told_F) == 2, "no say in the scaling"


@pytest.mark.parametrize(
    "bad", [{"pop_size": 1}, {"crossover_eta": 0}, {"mutation_prob": 2}], ids=str
)
def test_settings_are_validated(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        new(**bad)
