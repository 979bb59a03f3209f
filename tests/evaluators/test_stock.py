"""LmEval gives what the stock harness gives."""

from __future__ import annotations

import math

import numpy as np
import pytest

from .stock import comparison
from .toys import OBJECTIVES, build, make_model, make_t5


def stock(model, tokenizer, task_folder, evaluator, split, **settings):
    """The stock harness on the documents of a split."""
    samples = evaluator.samples(split)
    return comparison.stock(
        model, tokenizer, samples, samples, task_folder, batch_size=3, **settings
    )


def assert_equals_stock(scores, results, evaluator, split):
    for task in evaluator.samples(split):
        comparison.assert_same_answers(evaluator, results, split, task)
    comparison.assert_same_scores(scores, evaluator, results, split)


@pytest.mark.parametrize("batch_size", [4, "auto"])
@pytest.mark.parametrize("num_fewshot", [None, 2])
def test_equals_stock(task_folder, model, tokenizer, num_fewshot, batch_size):
    evaluator = build(task_folder, num_fewshot=num_fewshot, batch_size=batch_size)
    evaluator.prepare(model, tokenizer)
    for split in ("search", "test"):
        scores = evaluator.evaluate(model, None, split)
        results = stock(model, tokenizer, task_folder, evaluator, split, num_fewshot=num_fewshot)
        assert_equals_stock(scores, results, evaluator, split)


def test_equals_stock_with_settings(task_folder, model, tokenizer, monkeypatch):
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    monkeypatch.setattr(tokenizer, "chat_template", template)
    gen_kwargs = {"max_gen_toks": 3, "do_sample": True, "temperature": 0.7}
    settings = {
        "num_fewshot": 1,
        "apply_chat_template": True,
        "system_instruction": "Be brief.",
        "gen_kwargs": gen_kwargs,
    }
    evaluator = build(task_folder, fewshot_seed=7, batch_size=3, **settings)
    evaluator.prepare(model, tokenizer)
    scores = evaluator.evaluate(model, None, "select")
    results = stock(
        model, tokenizer, task_folder, evaluator, "select",
        fewshot_random_seed=7, fewshot_as_multiturn=True, **settings,
    )  # fmt: skip
    assert_equals_stock(scores, results, evaluator, "select")


def test_long_inputs_are_cut_and_rolled_like_stock(task_folder, device, tokenizer, caplog):
    model = make_model(device, max_position_embeddings=24)
    objectives = [o for o in OBJECTIVES if o.task != "toy_generate"]
    evaluator = build(task_folder, objectives)
    evaluator.prepare(model, tokenizer)
    scores = evaluator.evaluate(model, None, "select")
    results = stock(model, tokenizer, task_folder, evaluator, "select")
    assert_equals_stock(scores, results, evaluator, "select")
    assert "lose their beginning" in caplog.text


def test_an_encoder_decoder_equals_stock(task_folder, device, tokenizer):
    model = make_t5(device)
    evaluator = build(task_folder, batch_size=3)
    evaluator.prepare(model, tokenizer)
    scores = evaluator.evaluate(model, None, "select")
    results = stock(model, tokenizer, task_folder, evaluator, "select")
    assert_equals_stock(scores, results, evaluator, "select")
    assert len(set(scores.per_example["last"])) > 5


def test_standard_errors(evaluator, model):
    scores = evaluator.evaluate(model, None, "search")
    accuracy = scores.per_example["choice"]
    want = accuracy.std(ddof=1) / math.sqrt(len(accuracy))
    assert scores.stderr["choice"] == pytest.approx(want)
    assert 0 < scores.stderr["text"] < abs(scores.values["text"])
    assert math.isnan(evaluator.evaluate(model, None, "test").stderr["mcc"])


def test_ratio_standard_error_matches_the_bootstrap():
    from lm_eval.api import metrics as stock_metrics

    from evomerge.evaluators.metrics import standard_error

    rng = np.random.default_rng(0)
    weights = rng.integers(5, 60, 300)
    items = [(float(-w * rng.gamma(9, 0.05)), int(w)) for w in weights]
    for aggregate, sample in (
        (stock_metrics.bits_per_byte, items),
        (stock_metrics.weighted_perplexity, items),
        (stock_metrics.perplexity, [ll / w for ll, w in items]),
    ):
        draws = [aggregate([sample[i] for i in rng.integers(0, 300, 300)]) for _ in range(1000)]
        assert standard_error(aggregate, sample) == pytest.approx(np.std(draws), rel=0.1)


def test_only_means_have_documents_of_their_own():
    """A task may name its own aggregation: a mean is known by what it does."""
    from evomerge.evaluators.metrics import per_document, standard_error

    items = [0.0, 1.0, 1.0, 0.0, 1.0]
    for mean in (np.mean, lambda given: sum(given) / len(given)):
        np.testing.assert_array_equal(per_document(mean, items), items)
        assert standard_error(mean, items) == pytest.approx(np.std(items, ddof=1) / math.sqrt(5))
    for other in (np.median, max, lambda given: given[0]):
        assert per_document(other, items) is None
        assert math.isnan(standard_error(other, items))
