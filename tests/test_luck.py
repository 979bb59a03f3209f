"""The winner's curse, where the truth is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from evomerge.luck import luck
from tests import synthetic as s

ONE = (s.Objective("a", "task_a", "acc"),)
TWO = (*ONE, s.Objective("b", "task_b", "acc"))


def draw(seed: int, spread: float, n: int = 40, documents: int = 80):
    """A run whose merges have known true scores, and those; one single model scores 0.5."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(0, 1.0, documents)
    hard -= hard.mean()
    true = rng.normal(0.6, spread, n)
    trials = [s.trial(0, {"a": 1 + hard}, "reference", label="expert a")]  # so that the unit is 1
    trials += [s.trial(1 + i, {"a": v + hard + rng.normal(0, 0.5, documents)})
               for i, v in enumerate(true)]  # fmt: skip
    return s.run(trials, ONE), true


@pytest.mark.parametrize("spread", [0.0, 0.03, 0.1])
def test_the_correction_removes_most_of_the_bias(spread: float) -> None:
    raw, corrected = [], []
    for seed in range(30):
        run, true = draw(seed, spread)
        found = luck(run)
        gap = true[found.trial.number - 1] - 1.0
        raw.append(found.gain - gap)
        corrected.append(found.expected - gap)
    assert np.mean(raw) > 0.02, "there is something to correct"
    assert abs(np.mean(corrected)) < 0.45 * np.mean(raw)
    assert np.mean(corrected) > -0.01, "and it is not overdone"


def test_a_rival_chosen_on_the_same_documents_is_flattered_too() -> None:
    """Of four single models that are equally good the luckiest is the rival."""
    noise, best_of_four = 0.5 / 80**0.5, 1.03  # standard errors that the luckiest lies above
    rivals = []
    for seed in range(30):
        rng = np.random.default_rng(100 + seed)
        rows = rng.normal(0, 1.0, 80) + rng.normal(0, 0.5, (44, 80))
        rows += np.where(np.arange(44) < 4, 1.0, 1.2)[:, None] - rows[:4].mean()
        labels = ("base", "expert a", "expert b", "expert c")
        singles = [s.trial(i, {"a": rows[i]}, "reference", label=labels[i]) for i in range(4)]
        found = luck(s.run(singles + [s.trial(i, {"a": rows[i]}) for i in range(4, 44)], ONE))
        rivals.append(found.flattery - found.luck)
    assert 0.5 * best_of_four * noise < np.mean(rivals) < 1.1 * best_of_four * noise
    run, _ = draw(0, 0.1)
    assert luck(run).flattery == luck(run).luck, "one single model was not chosen"


def test_one_candidate_has_no_luck() -> None:
    run, _ = draw(0, 0.1, n=1)
    found = luck(run)
    assert found.luck == pytest.approx(0, abs=0.01)
    assert found.gain == pytest.approx(found.trial.scores.values["a"] - 1)


def test_copies_of_one_model_have_no_luck() -> None:
    """What all candidates share cannot be chosen for."""
    run, _ = draw(0, 0.1, n=1)
    base, one = run.trials
    copies = [dataclasses.replace(one, number=i) for i in range(1, 40)]
    assert luck(s.run([base, *copies], ONE)).luck == luck(run).luck


def test_the_same_run_gives_the_same_answer() -> None:
    run, _ = draw(3, 0.05)
    assert luck(run) == luck(run)
    assert luck(run).luck > 0
    words = luck(run).sentence
    assert words.startswith("Of the search's gain of ")
    assert "the best of 40 on 80 documents" in words


def test_documents_that_were_not_asked() -> None:
    run, _ = draw(4, 0.05)
    trials = list(run.trials)
    rows = trials[5].scores.per_example["a"].copy()
    rows[::2] = np.nan
    trials[5] = s.trial(5, {"a": rows})
    assert np.isfinite(luck(s.run(trials, ONE)).luck)


@pytest.mark.parametrize("scalarisation", ["mean", "worst", "chebyshev"])
def test_several_objectives(scalarisation: str) -> None:
    found = luck(s.study(seed=2, objectives=TWO, scalarisation=scalarisation))
    assert found.luck > 0
    assert found.expected < found.gain


def test_where_nothing_can_be_said() -> None:
    assert luck(s.run([])) is None
    assert luck(s.run([s.trial(1, {"a": [1.0, 0.0]})], ONE)) is None, "no single model"
    corpus = [
        s.trial(0, {"a": (0.5, 0.1)}, "reference", label="base"),
        s.trial(1, {"a": (0.6, 0.1)}),
    ]
    assert luck(s.run(corpus, ONE)) is None, "no scores per document"


def test_the_report_has_the_sentence_where_there_is_a_gain() -> None:
    from evomerge.report import text, to_json

    run, _ = draw(3, 0.05)
    worse = s.run([s.trial(0, {"a": np.full(80, 1.0)}, "reference", label="expert a"),
                   s.trial(1, {"a": np.full(80, 0.5)})], ONE)  # fmt: skip
    better = [dataclasses.replace(t, label="") if t.number else t for t in run.trials]
    better[0] = s.trial(
        0, {"a": run.trials[1].scores.per_example["a"] - 1}, "reference", label="base"
    )
    gained = s.run(better, ONE)
    assert luck(gained).sentence in " ".join(text(gained, width=400).split())
    assert to_json(gained)["luck"]["expected"] == pytest.approx(luck(gained).expected)
    assert "expected to be luck" not in text(worse)
    assert to_json(worse)["luck"]["gain"] < 0
