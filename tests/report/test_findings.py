"""What is worked out of a run: progress, which coefficients mattered, luck; and many runs."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from evomerge import pareto
from evomerge.choose import front
from evomerge.cli import main
from evomerge.compare import paired_mean, scale_of
from evomerge.errors import ConfigError
from evomerge.report import many_tables, to_json
from evomerge.report.coefficients import called, effects, tabulate
from evomerge.report.leads import leads
from evomerge.report.many import compare, names, paired_seeds, run_folders
from evomerge.report.progress import progress
from evomerge.trial import Objective, TrialState
from evomerge.verdict import verdict
from tests import synthetic as s


@pytest.fixture(scope="module")
def run():
    return s.study(n=40)


def test_hypervolume_is_that_of_everything_found(run):
    course = progress(run)
    scale = scale_of(run, "search")
    rows = [list(scale.normalise(t.scores.values).values()) for t in run.complete("search")]
    singles = np.array(rows[:3])
    corner = singles.min(axis=0)
    whole = pareto.hypervolume(np.array(rows), corner) / np.prod(1 - corner)
    assert course.volume[-1] == pytest.approx(whole)
    assert (np.diff([course.volume_before, *course.volume]) >= 0).all()
    assert course.volume[-1] > course.volume_before


def test_time_counts_work_and_nothing_else(run):
    copy = dataclasses.replace(run.trials[6], number=90, copied_from=6)
    made = dataclasses.replace(run, trials=(*run.trials, copy, s.failed(91)))
    course = progress(made)
    assert course.seconds[39] == pytest.approx(40 * 2.1)
    assert course.seconds[-1] == course.seconds[39]
    assert math.isnan(course.scalar[-1])
    assert course.best[-1] == course.best[39]


def test_one_objective_has_no_hypervolume():
    course = progress(s.study(n=5, objectives=s.OBJECTIVES[:1]))
    assert course.volume == []
    assert math.isnan(course.volume_before)
    assert progress(s.run([])).trials == []


def searched(weights, score, **more):
    """A run whose math score is a function of the weights."""
    reference = [
        s.trial(0, {"math": (0.2, 0.01)}, "reference", label="base", weights=(0, 0)),
        s.trial(1, {"math": (0.5, 0.01)}, "reference", label="expert math", weights=(1, 0)),
    ]
    rows = [
        s.trial(i + 2, {"math": (score(w), 0.01)}, weights=w, **more)
        for i, w in enumerate(weights)
    ]
    return s.run([*reference, *rows], objectives=s.OBJECTIVES[:1])


def test_a_parabola_is_found_and_noise_is_not():
    rng = np.random.default_rng(0)
    weights = rng.uniform(0, 1, (60, 2))
    found = effects(searched(weights, lambda w: 1 - (w[0] - 0.3) ** 2))
    first = found[0]
    assert [e.name for e in found] == [
        f"weight \u00b7 layers.0 \u00b7 {who} (+3 alike)" for who in ("math", "code")
    ]
    assert first.share["math"] > 0.99
    assert first.best_at["math"] == pytest.approx(0.3 * 0.8, abs=0.03)  # layer 0 has 0.8 of it
    assert "math" in first.clear
    assert not found[1].clear
    assert found[1].share["math"] < 0.2


def test_too_few_trials_say_nothing():
    weights = np.random.default_rng(0).uniform(0, 1, (7, 2))
    assert effects(searched(weights, lambda w: w[0])) == []
    assert effects(s.run([])) == []
    same = np.full((20, 2), 0.5)
    assert effects(searched(same, lambda w: 0.5)) == []


def test_switches_have_no_curvature():
    weights = np.array([[i % 2, 0.5] for i in range(20)], dtype=float)
    found = effects(searched(weights, lambda w: 0.1 + 0.5 * w[0]))
    assert found[0].share["math"] == pytest.approx(1)
    assert found[0].best_at["math"] >= 0.8  # the coefficient of "on", whatever the layer group


def test_coefficients_that_are_shared_are_one_column():
    flat = [
        dataclasses.replace(
            s.recipe((0, 0)), coefficients={"weight": np.tile([[w, 1 - w]], (s.GROUPS, 1))}
        )
        for w in (0.1, 0.5, 0.7)
    ]
    trials = [s.trial(i, {"math": (0.5, 0.1)}, recipe=r) for i, r in enumerate(flat)]
    (table,) = tabulate(trials)
    assert table.columns.shape == (3, 2)
    assert table.cells["weight"].tolist() == [[0, 1]] * s.GROUPS
    assert called(table, 0) == "weight \u00b7 all layers \u00b7 math"
    for row, t in zip(table.columns, trials, strict=True):
        np.testing.assert_array_equal(row[table.cells["weight"]], t.recipe.coefficients["weight"])


def test_leads_are_paired_with_the_verdicts_rival(run):
    answer = verdict(run)
    found = leads(run, answer)
    assert {lead.trial.number for lead in found} >= {answer.trial.number}
    best = next(lead for lead in found if lead.trial.number == answer.trial.number)
    assert best.on["test"] == answer.differences[0][1]
    on_search = [
        next(t for t in run.complete("search") if t.number == n)
        for n in (answer.trial.number, answer.rival.number)
    ]
    expected = paired_mean(*on_search, scale_of(run, "search")).mean
    assert best.on["search"].mean == pytest.approx(expected)
    assert best.luck == pytest.approx(expected - best.on["test"].mean)
    assert leads(s.study(n=4, test=False), verdict(s.study(n=4, test=False))) == []


def test_json_has_the_findings(run):
    made = to_json(run)
    assert made["leads"][0].keys() == {"number", "luck", "lead"}
    assert len(made["progress"]["best"]) == len(made["progress"]["hypervolume"]) == 40
    assert made["mattered"][0].keys() == {"name", "share", "best_at", "clear"}


def test_estimates_are_neither_front_nor_best(run):
    high = s.trial(77, {"math": (0.99, 0.2), "code": (0.0, 0.2)})
    high = dataclasses.replace(high, state=TrialState.PRUNED)
    made = dataclasses.replace(run, trials=(*run.trials, high))
    assert 77 not in {t.number for t in front(made)}
    assert progress(made).best[-1] == progress(run).best[-1]
    assert progress(made).volume[-1] == progress(run).volume[-1]


def sweep(seeds=4, n=20):
    runs = []
    for k, (driver, gain) in enumerate((("cma_es", 0.2), ("random", 0.02))):
        for seed in range(seeds):
            made = s.study(n=n + seed, seed=10 * k + seed, gain=gain, optimizer=driver)
            meta = {**made.meta, "seed": seed, "fingerprint": {"optimizer": {"_target_": driver}}}
            runs.append(dataclasses.replace(made, path=Path(f"{driver}-{seed}"), meta=meta))
    return runs


def test_drivers_at_equal_budget():
    c = compare(sweep())
    assert [one.name for one in c.contenders] == ["cma_es", "random"]
    assert c.budget == 20
    assert c.seconds == pytest.approx(20 * 2.1)
    first, second = c.contenders
    assert first.best(20) == pytest.approx(first.best_in(c.seconds))
    gap, ahead = paired_seeds(first, second, 20)
    each = np.subtract(first.best(20), second.best(20))
    assert (gap.mean, gap.n, ahead) == (pytest.approx(each.mean()), 4, 4)
    words, tone, _ = many_tables.headline(c)
    assert (words, tone) == ("cma_es is ahead", "merge")
    table = many_tables.contenders_table(c)
    assert [r.cells[-1].text for r in table.rows] == ["to beat", "worse"]
    json.dumps(many_tables.to_json(c), allow_nan=False)


def test_two_seeds_tell_nothing():
    assert many_tables.headline(compare(sweep(seeds=2)))[:2] == ("No clear winner", "unclear")


def test_what_sets_runs_apart():
    a, b = sweep(seeds=1)

    def given(run, **optimizer):
        return dataclasses.replace(
            run, meta={**run.meta, "fingerprint": {"optimizer": optimizer, "seed": 3}}
        )

    assert names([a, b]) == ["cma_es", "random"]
    assert names([given(a, sigma=0.1), given(a, sigma=0.3)]) == [
        "cma_es, sigma 0.1",
        "cma_es, sigma 0.3",
    ]


def test_runs_that_cannot_be_compared():
    other = s.study(n=4, objectives=[Objective("law", "law", "acc")])
    with pytest.raises(ConfigError, match="other tasks or documents"):
        compare([s.study(n=4), other])
    with pytest.raises(ConfigError, match="no search trial"):
        compare([s.study(n=4), s.study(n=0)])


def test_folders_of_a_sweep(tmp_path):
    for name in ("b/x", "b/y", "a"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "journal.log").touch()
    found = run_folders([tmp_path / "b", tmp_path / "a", tmp_path / "b" / "x", tmp_path / "none"])
    assert [str(f.relative_to(tmp_path)) for f in found] == ["b/x", "b/y", "a", "none"]
    assert main(["report", str(tmp_path / "none")]) == 2
