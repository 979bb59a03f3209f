"""Documents in blocks: what a raced candidate is asked, and what is made of the answers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from evomerge.errors import ConfigError
from evomerge.evaluators.blocks import order
from evomerge.evaluators.metrics import is_documented
from evomerge.evaluators.together import Together
from evomerge.racing import Racing
from evomerge.trial import Objective, Scores, Trial, TrialState
from tests.fakes import recipe

from .toys import OBJECTIVES, build, make_model

RACED = tuple(o for o in OBJECTIVES if o.name in {"choice", "brier", "last_acc", "text", "strict"})
RECIPE = recipe(0.5)


def reference(scores: Scores) -> Trial:
    return Trial(0, "reference", None, RECIPE, TrialState.COMPLETE, scores)


def beyond(scores: Scores, by: float) -> list[Trial]:
    """A trial that is better by so much on every document, a middling and a bad one."""
    return [reference(_raised(scores, by * share)) for share in (1.0, 0.5, -0.3)]


def _raised(scores: Scores, by: float) -> Scores:
    rows = {
        k: (v + by * (1 + 0.01 * np.cos(np.arange(len(v))))).astype(np.float32)
        for k, v in scores.per_example.items()
    }
    values = {k: float(v.astype(np.float64).mean()) for k, v in rows.items()}
    return dataclasses.replace(scores, values=values, per_example=rows)


@pytest.fixture(scope="module")
def whole(task_folder, tokenizer):
    """An evaluator, its model, and the scores of that on all documents."""
    model = make_model("cpu")
    evaluator = build(task_folder, RACED)
    evaluator.prepare(model, tokenizer)
    return evaluator, model, evaluator.evaluate(model, RECIPE, "search")


def test_a_candidate_that_keeps_up_gets_the_scores_of_an_unraced_one(whole) -> None:
    evaluator, model, plain = whole
    bar = Racing(RACED, pareto=True).bar([reference(plain)])
    raced = evaluator.evaluate(model, RECIPE, "search", bar)
    assert raced.asked is None
    for name, value in plain.values.items():
        assert raced.values[name] == pytest.approx(value, abs=1e-6)
        np.testing.assert_allclose(raced.per_example[name], plain.per_example[name], atol=1e-4)


@pytest.mark.parametrize("pareto", [True, False])
def test_a_hopeless_candidate_is_stopped_after_the_first_block(whole, pareto) -> None:
    evaluator, model, plain = whole
    racing = Racing(RACED, pareto=pareto, first=0.25)
    bar = racing.bar(beyond(plain, 5.0))
    raced = evaluator.evaluate(model, RECIPE, "search", bar)
    n = max(evaluator.documents("search").values())
    n_tasks = len({o.task for o in RACED})
    assert raced.asked == n_tasks * int(np.ceil(n * 0.25))
    for o in RACED:
        seen = np.isfinite(raced.per_example[o.name])
        assert seen.sum() == int(np.ceil(n * 0.25))
        # Every document is worse by much the same: the estimate is close.
        assert raced.values[o.name] == pytest.approx(plain.values[o.name], abs=5e-2)
        assert raced.stderr[o.name] >= 0
    again = evaluator.evaluate(model, RECIPE, "search", bar)
    assert again.values == raced.values
    assert evaluator.evaluate(model, RECIPE, "search").values == plain.values


def test_bits_per_byte_is_estimated_as_a_ratio(task_folder, tokenizer) -> None:
    """A constant difference is found, however long the documents seen are."""
    text = Objective("text", "toy_text", "bits_per_byte", direction="minimize")
    model, evaluator = make_model("cpu"), build(task_folder, (text,))
    evaluator.prepare(model, tokenizer)
    plain = evaluator.evaluate(model, RECIPE, "search")
    bar = Racing((text,), pareto=False, first=0.2).bar(beyond(plain, 3.0))
    raced = evaluator.evaluate(model, RECIPE, "search", bar)
    assert raced.asked is not None
    assert raced.values["text"] == pytest.approx(plain.values["text"], abs=2e-2)


def test_what_the_weights_say_is_certain_and_known_first(whole) -> None:
    evaluator, model, plain = whole
    size = Objective("size", "weights", "distance", direction="minimize", bound=1.0)

    class Size:
        objectives = (size,)

        def evaluate(self, model, recipe, split, bar=None) -> Scores:
            return Scores({"size": -2.0}, {"size": 0.0}, {"size": None})

    rival = dataclasses.replace(
        plain,
        values={**plain.values, "size": -0.5},
        stderr={**plain.stderr, "size": 0.0},
        per_example={**plain.per_example, "size": None},
    )
    objectives = (*RACED, size)
    bar = Racing(objectives, pareto=False).bar([reference(rival)])
    raced = Together(evaluator, [Size()], objectives).evaluate(model, RECIPE, "search", bar)
    assert raced.asked is not None, "a bound that is broken for certain is a race lost"
    assert raced.values["size"] == -2.0
    assert raced.stderr["size"] == 0.0


def test_one_order_for_every_candidate_that_the_seed_decides() -> None:
    assert sorted(order("t", 50, 0)) == list(range(50))
    assert (order("t", 50, 0) == order("t", 50, 0)).all()
    assert (order("t", 50, 0) != order("t", 50, 1)).any()
    assert (order("t", 50, 0) != order("u", 50, 0)).any()


def test_corpus_metrics_are_known_by_their_aggregation(task_folder) -> None:
    assert build(task_folder, OBJECTIVES).corpus_metrics == ("last", "words")
    mcc = dataclasses.replace(OBJECTIVES[3], search=True)
    assert build(task_folder, (mcc,)).corpus_metrics == ("mcc",)
    from lm_eval.api import metrics as stock

    for name in ("f1_score", "bleu", "chrf", "ter", "perplexity", "weighted_perplexity", "median"):
        assert not is_documented(getattr(stock, name)), name
    for name in ("mean", "nanmean", "brier_score", "bits_per_byte"):
        assert is_documented(getattr(stock, name)), name
    assert is_documented(lambda items: sum(items) / len(items))


@pytest.mark.parametrize("bad", [{"error": 1.0}, {"first": 0.0}, {"growth": 1}, {"error": "x"}])
def test_settings_out_of_range(bad) -> None:
    with pytest.raises(ConfigError, match="racing"):
        Racing(RACED, pareto=False, **bad)
