"""M2N2: niches, crossover in coefficient space, what enters the archive."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizer_fakes import CODE, MATH, make_trial, references, simulate

from evomerge.errors import ConfigError, StudyError
from evomerge.geometry import Geometry
from evomerge.optimizers.base import Problem
from evomerge.optimizers.m2n2 import M2n2
from evomerge.optimizers.niches import (
    Archive,
    angle_between,
    attract,
    blend,
    cross,
    draw,
    draw_cut,
    shares,
)
from evomerge.trial import Objective, Scores, TrialState

RNG = np.random.default_rng(0)
BITS = Objective("bits", "t", "bits_per_byte", direction="minimize")


def new(dim=6, objectives=(MATH,), geometry=None, **given):
    problem = Problem(dim, 2, tuple(objectives), np.full(dim, 0.5), geometry=geometry)
    return M2n2(problem, **given)


def scored(number, x, rows, **more):
    """A COMPLETE trial with per-document scores."""
    trial = make_trial(number, x, {n: float(np.mean(r)) for n, r in rows.items()}, **more)
    examples = {n: np.asarray(r, dtype=np.float32) for n, r in rows.items()}
    return dataclasses.replace(trial, scores=Scores(trial.scores.values, {}, examples))


# ---- niches


def test_shares_by_hand():
    scores = np.array([[1.0, 1, 0], [1, 0, 0]])
    assert shares(scores).tolist() == [[0.5, 1, 0], [0.5, 0, 0]]
    assert shares(scores, np.array([2.0, 1, 1])).tolist() == [[1, 1, 0], [1, 0, 0]]
    assert shares(scores, alpha=0).tolist() == scores.tolist(), "no competition: a plain GA"
    assert np.allclose(shares(scores, alpha=0.5), scores / np.sqrt([2, 1, 1]))


def test_graded_scores_compete_where_nobody_hits():
    graded = np.array([[0.9, 0.9, 0.001], [0.9, 0.9, 0.003]])
    assert shares(graded).sum(axis=1) == pytest.approx([1.25, 1.75]), "the least wrong has most"
    assert attract(shares(graded), 0) == pytest.approx([0, 0.5])
    assert attract(shares(graded.round()), 0).tolist() == [0, 0], "hits and misses see no more"
    assert attract(shares(graded, graded.max(axis=0)), 0) == pytest.approx([0, 0.0015])


def test_attraction_is_what_the_first_cannot():
    F = np.array([[0.5, 1, 0], [0.5, 0, 0], [0.5, 1, 0], [0, 0, 2]])
    assert attract(F, 0).tolist() == [0, 0, 0, 2]
    assert attract(F, 1).tolist() == [1, 0, 1, 2]


def test_where_nobody_attracts_fitness_decides():
    archive = Archive(4)
    for _ in range(3):
        archive.add("m", np.array([1.0, 1, 0]))
    firsts = {archive.parents(np.random.default_rng(s))[1] for s in range(40)}
    assert firsts == {0, 1, 2}


def test_the_least_fit_leaves_and_niches_stay():
    archive = Archive(3)
    for name, row in (("a", [1, 1, 0, 0]), ("b", [1, 1, 0, 0]), ("c", [0, 0, 0, 1])):
        assert archive.add(name, np.array(row, dtype=float))
    assert archive.add("d", np.array([1.0, 1, 1, 0]))
    assert sorted(archive.members) == ["b", "c", "d"], "c solves least, but alone"
    assert not archive.add("e", np.array([0.0, 0, 0, 0]))
    assert len(archive) == 3
    assert np.allclose(archive.fitness, archive.shares.sum(axis=1))


def test_draw_is_proportional_and_never_draws_zero():
    weights = np.array([0.0, 3.0, 0.0, 1.0])
    drawn = [draw(weights, np.random.default_rng(s)) for s in range(400)]
    assert set(drawn) == {1, 3}
    assert np.mean(np.array(drawn) == 1) == pytest.approx(0.75, abs=0.07)
    assert {draw(np.zeros(3), np.random.default_rng(s)) for s in range(30)} == {0, 1, 2}


def test_cuts_are_uniform_over_parameters():
    sizes = np.array([10.0, 80.0, 10.0])
    cuts = [draw_cut(sizes, np.random.default_rng(s)) for s in range(500)]
    assert np.bincount(cuts, minlength=3) / 500 == pytest.approx([0.1, 0.8, 0.1], abs=0.05)


def test_blend_ends_at_the_parents():
    for angle in (0.0, 0.3, 2.0, np.pi):
        assert blend(0.0, angle) == pytest.approx((1, 0))
        assert blend(1.0, angle) == pytest.approx((0, 1))
    assert blend(0.5, np.pi / 2) == pytest.approx((2**-0.5, 2**-0.5))


# ---- crossover through Gram matrices


def family(g=4, k=3, seed=0):
    """Basis tensors per group, and the Geometry that knows only their inner products."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(5, 40, g)
    basis = [rng.standard_normal((k, n)) + 1.0 for n in sizes]
    grams = np.array([b @ b.T for b in basis])
    d = g * k
    geometry = Geometry(grams, sizes.astype(float), np.eye(d), np.full(d, -1.0), np.full(d, 2.0))
    return basis, geometry


def weights(basis, coefficients):
    return np.concatenate([c @ b for c, b in zip(coefficients, basis, strict=True)])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000))
def test_slerp_by_gram_is_slerp_of_the_weights(seed):
    """Two generations deep, to 1e-12."""
    rng = np.random.default_rng(seed)
    basis, geometry = family(seed=seed)
    genomes = [rng.uniform(0, 1, (4, 3)) for _ in range(4)]
    vectors = [weights(basis, c) for c in genomes]
    ends = np.concatenate([[0], np.cumsum(geometry.sizes)]).astype(int)
    for _ in range(2):
        children, real = [], []
        for i in (0, 2):
            a, b = (i, (i + 1) % len(genomes)) if len(genomes) > 2 else (0, 1)
            cut, t = int(rng.integers(4)), float(rng.random())
            angle = geometry.angle(genomes[a], genomes[b])
            assert angle == pytest.approx(angle_between(vectors[a], vectors[b]), abs=1e-7)
            children.append(cross(genomes[a], genomes[b], cut, t, angle))
            real.append(cross(vectors[a], vectors[b], ends[cut], t, angle))
        genomes, vectors = children, real
    for genome, vector in zip(genomes, vectors, strict=True):
        assert np.abs(weights(basis, genome) - vector).max() < 1e-12 * np.abs(vector).max()


def test_children_in_a_linear_space_are_blends_of_models():
    basis, geometry = family(g=3, k=2)
    optimizer = new(dim=6, geometry=geometry, mutation=0, n_design=0)
    seeds = [geometry.point(np.tile(row, (3, 1))) for row in ([1.0, 0], [0, 1.0])]
    for i, x in enumerate(seeds):
        row = np.zeros(10)
        row[i::2] = 1
        optimizer.tell([scored(i, x, {"math": row}, kind="reference", label=f"expert {i}")])
    a, b = (weights(basis, geometry.coefficients(m.x)) for m in optimizer.members)
    for x in optimizer.ask(20, 2):
        child = geometry.coefficients(x)
        assert len(np.unique(child.round(9), axis=0)) <= 2, "one cut"
        angle = angle_between(a, b)
        for c in child:  # a' A + b' B with (a', b') on the slerp arc
            t = np.arctan2(c[1] * np.sin(angle), c[0] + c[1] * np.cos(angle)) / angle
            assert c == pytest.approx(blend(float(t), angle), abs=1e-6)


def test_spaces_that_share_coefficients_are_cut_between_axes():
    """A profile with two knots has no merge that is cut between groups, yet children blend."""
    _, wide = family(g=3, k=2)
    assert wide.is_separable
    depth = np.array([[1.0, 0], [0.5, 0.5], [0, 1.0]])
    profile = dataclasses.replace(
        wide, matrix=np.kron(depth, np.eye(2)), low=np.zeros(4), high=np.full(4, 2.0)
    )
    assert not profile.is_separable
    optimizer = new(dim=4, geometry=profile, mutation=0, n_design=0)
    ends = np.array([0.5, 0, 0.5, 0]), np.array([0, 0.5, 0, 0.5])
    optimizer.tell([scored(i, x, {"math": np.eye(2)[i]}) for i, x in enumerate(ends)])
    a, b = (profile.coefficients(x) for x in ends)
    arc = np.array([blend(t, profile.angle(a, b)) for t in np.linspace(0, 1, 2001)])
    children = [profile.values(x) for x in optimizer.ask(40, 2)]
    whole = [v for v in children if np.allclose(v[:2], v[2:])]
    assert 0 < len(whole) < 40, "both blends of whole profiles and cut ones"
    for values in whole:
        assert np.abs(arc - values[:2]).sum(axis=1).min() < 1e-3, "by the models' angle"


def test_a_child_outside_the_space_is_drawn_again_never_clipped():
    _, wide = family(g=3, k=2)
    tight = dataclasses.replace(wide, low=np.zeros(6), high=np.ones(6))
    optimizer = new(dim=6, geometry=tight, mutation=0, n_design=0)
    rng = np.random.default_rng(1)
    for i in range(6):
        optimizer.tell([scored(i, rng.random(6), {"math": rng.random(8)})])
    for x in optimizer.ask(50, 6):
        assert ((x >= 0) & (x <= 1)).all()
        inside = (x > 0) & (x < 1)
        assert inside.mean() > 0.9, "clipping would pile points up on the bounds"


def test_without_geometry_it_says_so_and_crosses_x():
    optimizer = new(mutation=0, n_design=0)
    assert "not linear" in optimizer.note
    assert new(crossover="lerp").note == ""
    a, b = np.full(6, 0.2), np.full(6, 0.8)
    optimizer.tell([scored(0, a, {"math": [1, 0]}), scored(1, b, {"math": [0, 1]})])
    for x in optimizer.ask(20, 2):
        assert len(np.unique(x.round(12))) <= 2
        assert ((x >= 0.2) & (x <= 0.8)).all()


# ---- the archive as a fold


def test_only_complete_feasible_search_points_enter():
    bounded = dataclasses.replace(CODE, search=False, bound=0.5)
    optimizer = new(objectives=(MATH, bounded))
    row = {"math": [1.0, 0.0], "code": [1.0, 0.0]}
    optimizer.tell([scored(0, np.full(6, 0.1), row)])
    optimizer.tell([scored(1, np.full(6, 0.2), row | {"code": [0.0, 0.0]})])  # infeasible
    optimizer.tell([scored(2, np.full(6, 0.3), row, state=TrialState.PRUNED)])
    optimizer.tell([make_trial(3, np.full(6, 0.4))])
    optimizer.tell([scored(4, np.full(6, 0.1), row)])  # the same point again
    assert [m.trial.number for m in optimizer.members] == [0]


def test_losses_become_what_was_learned_beyond_the_base():
    optimizer = new(objectives=(BITS,))
    base = -np.array([3.0, 2.0, 1.0])
    optimizer.tell([scored(0, None, {"bits": base}, kind="reference", label="base")])
    better = base + np.array([1.0, 0.0, 0.0])
    optimizer.tell([scored(1, np.zeros(6), {"bits": better}, kind="reference", label="expert a")])
    worse = base + np.array([0.0, -1.0, 0.5])
    optimizer.tell([scored(2, np.ones(6), {"bits": worse})])
    scores, capacity = optimizer._documents.resources(optimizer._archive.rows)
    unit = 1 / 3  # what the best expert gains in the mean
    assert scores == pytest.approx(np.array([[1, 0, 0], [0, 0, 0.5]]) / 3 / unit)
    assert capacity == pytest.approx(np.array([1, 0, 0.5]) / 3 / unit)


def test_objectives_share_by_weight_not_by_number_of_documents():
    heavy = dataclasses.replace(MATH, weight=3.0)
    optimizer = new(objectives=(heavy, CODE))
    optimizer.tell([scored(0, np.zeros(6), {"math": np.ones(5), "code": np.ones(50)})])
    scores, _ = optimizer._documents.resources(optimizer._archive.rows)
    assert scores[0, :5].sum() == pytest.approx(0.75)
    assert scores[0, 5:].sum() == pytest.approx(0.25)


def test_corpus_metrics_are_refused_by_name():
    optimizer = new(objectives=(MATH, CODE))
    trial = scored(0, np.zeros(6), {"math": [1.0], "code": [1.0]})
    broken = dataclasses.replace(
        trial.scores, per_example=dict(trial.scores.per_example) | {"code": None}
    )
    with pytest.raises(ConfigError, match=r"'code'.*'acc'.*whole corpus"):
        optimizer.tell([dataclasses.replace(trial, scores=broken)])


def test_other_documents_are_refused():
    optimizer = new()
    optimizer.tell([scored(0, np.zeros(6), {"math": [1.0, 0.0]})])
    with pytest.raises(StudyError, match="same documents"):
        optimizer.tell([scored(1, np.ones(6), {"math": [1.0, 0.0, 1.0]})])


def test_design_then_children():
    points = new(dim=2, n_design=17).ask(17, 0)
    assert points[0].tolist() == [0.5, 0.5]
    assert len({tuple((x * 4).astype(int)) for x in points[1:]}) == 16


def test_keeps_specialists_that_a_plain_ga_loses():
    """Two goals on different documents: the archive holds both ends with competition only."""

    def score(x):
        return {"math": 0.9 * float(x[0] > 0.7), "code": float(x[0] < 0.3)}

    ends = {}
    for alpha in (1.0, 0.0):
        optimizer = new(dim=2, objectives=(MATH, CODE), alpha=alpha, pop_size=8)
        simulate(optimizer, score, 150)
        ends[alpha] = {m.trial.scores.values["math"] for m in optimizer.members}
    assert ends[1.0] == {0.9, 0.0}


def test_converges_on_niches_that_have_to_be_combined():
    """Each half of x solves half of the documents; the answer is both."""

    def score(x):
        return {"math": 1 - float(np.mean(np.abs(x[:3] - 0.9))),
                "code": 1 - float(np.mean(np.abs(x[3:] - 0.1)))}  # fmt: skip

    log = simulate(new(objectives=(MATH, CODE)), score, 300, workers=4, warm=references(6, score))
    found = max(sum(score(t.x).values()) for t in log.told if t.x is not None)
    assert found > 1.85


@pytest.mark.parametrize(
    "bad",
    [
        {"pop_size": 1},
        {"alpha": -1},
        {"attraction": "yes"},
        {"split": 1},
        {"crossover": "sphere"},
        {"mutation": -0.1},
        {"n_design": -1},
    ],
    ids=str,
)
def test_settings_are_validated(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        new(**bad)
