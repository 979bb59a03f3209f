"""Differences and their uncertainty, against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.compare import normalised_mean, paired, paired_mean, scale_of, smallest_visible
from evomerge.errors import ConfigError, UnknownNameError
from evomerge.scale import Scale
from evomerge.trial import Scores, Trial
from tests import synthetic as s

ONE = Scale(("a",), (0.0,), (1.0,), (1.0,))


def test_paired_is_the_one_sample_t_interval():
    a = s.trial(1, {"a": [1.0, 2.0, 4.0, 5.0]})
    b = s.trial(2, {"a": [0.0, 1.0, 1.0, 4.0]})
    d = paired(a, b, "a")
    # Differences 1, 1, 3, 1: mean 1.5, sd 1, stderr 1/2; t(3, .975) = 3.182446.
    assert d.mean == pytest.approx(1.5)
    assert d.stderr == pytest.approx(0.5)
    assert (d.low, d.high) == pytest.approx((1.5 - 1.591223, 1.5 + 1.591223), abs=1e-5)
    assert d.n == 4
    assert d.z == pytest.approx(3.0)
    assert not d.better
    assert not d.worse


def test_pairing_sees_what_two_standard_errors_hide():
    hard = np.linspace(-5, 5, 50)
    a = s.trial(1, {"a": hard + 0.1 + 0.01 * np.sin(hard)})
    b = s.trial(2, {"a": hard})
    assert paired(a, b, "a").better
    assert paired(b, a, "a").worse
    assert normalised_mean(a, ONE).low < normalised_mean(b, ONE).high


def test_nan_documents_are_left_out():
    a = s.trial(1, {"a": [1.0, np.nan, 3.0, 7.0]})
    b = s.trial(2, {"a": [0.0, 5.0, np.nan, 4.0]})
    d = paired(a, b, "a")
    assert (d.mean, d.n) == (2.0, 2)
    assert d.stderr == pytest.approx(1.0)


def test_corpus_metrics_fall_back_to_unpaired():
    a, b = s.trial(1, {"a": (0.7, 0.03)}), s.trial(2, {"a": (0.5, 0.04)})
    d = paired(a, b, s.Objective("a", "t", "acc"))
    assert (d.mean, d.stderr, d.n) == (pytest.approx(0.2), pytest.approx(0.05), 0)
    assert d.high - d.mean == pytest.approx(1.959964 * 0.05, rel=1e-4)


def test_unknown_standard_errors_stay_unknown():
    a, b = s.trial(1, {"a": (0.7, math.nan)}), s.trial(2, {"a": (0.5, 0.1)})
    for d in (paired(a, b, "a"), paired_mean(a, b, ONE)):
        assert math.isnan(d.stderr)
        assert math.isnan(d.low)
        assert math.isnan(d.z)
        assert not d.better
        assert not d.worse


def test_one_document_and_unanimous_few_are_no_evidence():
    one = paired(s.trial(1, {"a": [1.0]}), s.trial(2, {"a": [0.0]}), "a")
    assert math.isnan(one.stderr)
    few = paired(s.trial(1, {"a": [1.0] * 5}), s.trial(2, {"a": [0.0] * 5}), "a")
    assert not few.better
    six = paired(s.trial(1, {"a": [1.0] * 6}), s.trial(2, {"a": [0.0] * 6}), "a")
    assert six.better
    same = paired(s.trial(1, {"a": [1.0, 0.0]}), s.trial(2, {"a": [1.0, 0.0]}), "a")
    assert (same.mean, same.stderr, same.z, same.low, same.high) == (0, 0, 0, 0, 0)


def test_paired_mean_weighs_and_scales_each_task():
    scale = Scale(("a", "b"), (0.0, -2.0), (0.5, 2.0), (0.25, 0.75))
    x = s.trial(1, {"a": [1.0, 2.0, 4.0, 5.0], "b": [1.0, 1.0, 1.0]})
    y = s.trial(2, {"a": [0.0, 1.0, 1.0, 4.0], "b": [0.0, 1.0, 2.0]})
    d = paired_mean(x, y, scale)
    assert d.mean == pytest.approx(0.25 / 0.5 * 1.5)
    va, vb = (0.5 * 0.5) ** 2, (0.375**2) * (1.0 / 3)
    assert d.stderr == pytest.approx(math.sqrt(va + vb))
    from scipy.special import stdtrit

    dof = (va + vb) ** 2 / (va**2 / 3 + vb**2 / 2)
    assert d.high - d.mean == pytest.approx(stdtrit(dof, 0.975) * d.stderr)
    assert d.n == 7


def test_paired_mean_reads_aggregated_values():
    def weighted(number, value, rows):
        rows = np.asarray(rows, dtype=np.float32)
        scores = Scores({"a": value}, {"a": 0.1}, {"a": rows})
        return Trial(number, "search", None, s.recipe((0, 1)), s.TrialState.COMPLETE, scores)

    # A byte-weighted mean is not the mean over documents; the report shows the former.
    a, b = weighted(1, -1.0, [-1.0, -3.0, -1.0]), weighted(2, -1.5, [-2.0, -2.0, -2.0])
    assert paired_mean(a, b, ONE).mean == pytest.approx(0.5)
    assert paired_mean(a, b, ONE).stderr == pytest.approx(paired(a, b, "a").stderr)


def test_objectives_without_weight_do_not_count():
    scale = Scale(("a", "b"), (0.0, 0.0), (1.0, 1.0), (1.0, 0.0))
    a = s.trial(1, {"a": [1.0, 0.0, 2.0], "b": (5.0, math.nan)})
    b = s.trial(2, {"a": [0.0, 0.0, 0.0], "b": (0.0, math.nan)})
    assert paired_mean(a, b, scale).mean == pytest.approx(1.0)
    assert math.isfinite(paired_mean(a, b, scale).stderr)


def test_errors_say_what_was_expected():
    a = s.trial(1, {"a": [1.0, 2.0]})
    with pytest.raises(ConfigError, match="expected two trials of one split"):
        paired(a, s.trial(2, {"a": [1.0, 2.0]}, split="test"), "a")
    with pytest.raises(ConfigError, match="same documents in the same order"):
        paired(a, s.trial(2, {"a": [1.0, 2.0, 3.0]}), "a")
    with pytest.raises(ConfigError, match="has no scores"):
        paired(a, s.failed(3), "a")
    with pytest.raises(UnknownNameError, match="Did you mean 'math'"):
        paired(s.trial(1, {"math": [1.0, 2.0]}), s.trial(2, {"math": [1.0, 2.0]}), "maths")


def test_smallest_visible_is_twice_the_median_stderr():
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=40) for _ in range(3)]
    labels = ("base", "expert x", "expert y")
    trials = [
        s.trial(i, {"a": r}, "reference", label=n)
        for i, (r, n) in enumerate(zip(rows, labels, strict=True))
    ]
    errors = [paired_mean(trials[i], trials[j], ONE).stderr for i, j in ((0, 1), (0, 2), (1, 2))]
    assert smallest_visible(trials, ONE) == pytest.approx(2 * np.median(errors))
    assert math.isnan(smallest_visible(trials[:1], ONE))
    with pytest.raises(ConfigError, match="needs the scale"):
        smallest_visible(trials)


def test_smallest_visible_shrinks_with_documents():
    few, many = (smallest_visible(s.study(documents=n, n=0)) for n in (40, 640))
    assert many == pytest.approx(few / 4, rel=0.35)


def test_scale_of_falls_back_to_the_search():
    run = s.study(n=4, test=False)
    assert scale_of(run, "test") == run.scale("search")
    run = s.study(n=8)
    assert scale_of(run, "test") == run.scale("test") != run.scale("search")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-50, 50, width=32)] * 2), min_size=2, max_size=30))
def test_the_difference_is_antisymmetric(rows):
    x, y = (np.array(c, dtype=np.float32) for c in zip(*rows, strict=True))
    a, b = s.trial(1, {"a": x}), s.trial(2, {"a": y})
    there, back = paired(a, b, "a"), paired(b, a, "a")
    assert there.mean == -back.mean
    assert there.stderr == pytest.approx(back.stderr, nan_ok=True)
    assert there.low == pytest.approx(-back.high, nan_ok=True)
