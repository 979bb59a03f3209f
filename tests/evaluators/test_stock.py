"""LmEval gives what the stock harness gives."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest

from .toys import OBJECTIVES, build, make_model, make_t5


def stock(model, tokenizer, task_folder, evaluator, split, monkeypatch, **settings):
    """The stock harness on the documents of a split."""
    import lm_eval.evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(lm_eval.evaluator, "add_env_info", lambda results: None)
    samples = evaluator.samples(split)
    return lm_eval.evaluator.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=3),
        tasks=list(samples),
        samples=samples,
        task_manager=TaskManager(include_path=str(task_folder), include_defaults=False),
        bootstrap_iters=0,
        **settings,
    )


def assert_equals_stock(scores, results, evaluator, split):
    for task, instances in evaluator._built[split].instances.items():
        documents = {s["doc_id"]: s for s in results["samples"][task]}
        for index, doc_id in enumerate(evaluator.samples(split)[task]):
            ours = sorted((i for i in instances if i.doc_id == index), key=lambda i: i.idx)
            want = documents[doc_id]
            assert [i.args for i in ours] == want["arguments"]
            for mine, theirs in zip((i.resps for i in ours), want["resps"], strict=True):
                assert len(mine) == len(theirs) == 1
                if isinstance(mine[0], str):
                    assert mine == theirs
                else:
                    a, b = np.ravel(mine), np.ravel(theirs)
                    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-5)
    for o in evaluator.objectives:
        if split != "test" and not o.search:
            assert o.name not in scores.values
            continue
        raw = results["results"][o.task][f"{o.metric},{o.filter}"]
        exact = o.metric in {"acc", "acc_norm", "exact_match", "mcc"}
        assert o.sign * scores.values[o.name] == pytest.approx(
            raw, rel=0 if exact else 1e-5, abs=1e-12
        )
        logged = sorted(
            (s for s in results["samples"][o.task] if s["filter"] == o.filter),
            key=lambda s: s["doc_id"],
        )
        assert [s["doc_id"] for s in logged] == evaluator.samples(split)[o.task]
        per_example = scores.per_example[o.name]
        if o.metric == "mcc":
            assert per_example is None
            continue
        want = [s[o.metric] for s in logged]
        if o.metric in {"bits_per_byte", "word_perplexity"}:
            ll, n = np.array(want).T
            rate = -ll.sum() / n.sum()
            want = rate + (-ll - rate * n) / n.mean()
            if o.metric == "bits_per_byte":
                want = want / math.log(2)
            else:
                want = math.exp(rate) * (1 + want - rate)
        elif o.metric == "perplexity":
            want = raw * (1 - (np.array(want) - np.mean(want)))
        elif o.metric == "brier_score":
            want = [((np.eye(3)[gold] - p) ** 2).sum() for gold, p in want]
        assert per_example.dtype == np.float32
        np.testing.assert_allclose(
            per_example, o.sign * np.array(want), rtol=2e-5, atol=1e-5 * max(1, abs(raw))
        )
        assert per_example.mean() == pytest.approx(scores.values[o.name], rel=1e-4)


@pytest.mark.parametrize("batch_size", [4, "auto"])
@pytest.mark.parametrize("num_fewshot", [None, 2])
def test_equals_stock(task_folder, model, tokenizer, num_fewshot, batch_size, monkeypatch):
    evaluator = build(task_folder, num_fewshot=num_fewshot, batch_size=batch_size)
    evaluator.prepare(model, tokenizer)
    for split in ("search", "test"):
        scores = evaluator.evaluate(model, None, split)
        results = stock(
            model, tokenizer, task_folder, evaluator, split, monkeypatch, num_fewshot=num_fewshot
        )
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
        model, tokenizer, task_folder, evaluator, "select", monkeypatch,
        fewshot_random_seed=7, fewshot_as_multiturn=True, **settings,
    )  # fmt: skip
    assert_equals_stock(scores, results, evaluator, "select")


def test_long_inputs_are_cut_and_rolled_like_stock(
    task_folder, device, tokenizer, monkeypatch, caplog
):
    model = make_model(device, max_position_embeddings=24)
    objectives = [o for o in OBJECTIVES if o.task != "toy_generate"]
    evaluator = build(task_folder, objectives)
    evaluator.prepare(model, tokenizer)
    scores = evaluator.evaluate(model, None, "select")
    results = stock(model, tokenizer, task_folder, evaluator, "select", monkeypatch)
    assert_equals_stock(scores, results, evaluator, "select")
    assert "lose their beginning" in caplog.text


def test_an_encoder_decoder_equals_stock(task_folder, device, tokenizer, monkeypatch):
    model = make_t5(device)
    evaluator = build(task_folder, batch_size=3)
    evaluator.prepare(model, tokenizer)
    scores = evaluator.evaluate(model, None, "select")
    results = stock(model, tokenizer, task_folder, evaluator, "select", monkeypatch)
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
