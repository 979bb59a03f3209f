"""Requests of every shape give what the stock harness gives, alone and in any company.

What batching, padding, shared rows and shared beginnings could break, in few documents.
"""

from __future__ import annotations

import json
import random

import pytest
import torch

from evomerge.errors import TaskError
from evomerge.evaluators.lm_eval import LmEval
from evomerge.trial import Objective
from tests.conftest import devices

from .stock.comparison import assert_same_answers, assert_same_scores, stock
from .stock.configurations import text
from .stock.models import MODELS, make
from .toys import write_documents, write_task

RNG = random.Random(5)
LONG, MEDIUM = text(RNG, 90, 90), text(RNG, 20, 20)
SHAPES = {
    "no context": ("", ["green", " green bird", "x"]),
    "no context, choices that begin alike": ("", [" the", " the river", " the river sings"]),
    "a context of one token": ("x", ["y", " green", " the king eats"]),
    "choices of one token": ("stone bird", ["a", "b", "c", "d", "e"]),
    "a choice is the beginning of the next": ("stone bird", [" a", " ab", " abc", " abcd"]),
    "a context is the beginning of the next": ("stone bird green", [" a", " ab"]),
    "context and choice end where another does": ("stone bird green a", ["b", "bc"]),
    "the same text cut elsewhere": ("stone bird", [" green a", " green ab"]),
    "spaces at the end of the context": ("stone bird  ", ["green", "a", " a"]),
    "twenty choices that begin alike": (
        "Question: light?\nAnswer:",
        [" under the moon" + " light" * n + " quickly" for n in range(20)],
    ),
    "a long context and short choices": (LONG, [" a", " b"]),
    "a short context and long choices": ("x", [" " + MEDIUM, " a", " " + MEDIUM + " a"]),
    "a long context that is almost another": (LONG + " a", [" a", " b"]),
    "other letters": ("été 日本 ", ["日", "é", " 語"]),
}
TASK = {
    "task": "shapes",
    "output_type": "multiple_choice",
    "doc_to_text": "{{context}}",
    "doc_to_choice": "choices",
    "doc_to_target": "label",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}, {"metric": "acc_mutual_info"}],
}
FEWSHOT = TASK | {
    "task": "shapes_fewshot",
    "num_fewshot": 2,
    "fewshot_config": {"sampler": "first_n"},
}
TASKS = (TASK, TASK | {"task": "shapes_again"}, FEWSHOT)
OBJECTIVES = [
    Objective(f"{t['task']} {m['metric']}", t["task"], m["metric"])
    for t in TASKS
    for m in t["metric_list"]
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two tasks that ask the same, and one whose documents share their few-shot examples."""
    root = tmp_path_factory.mktemp("shapes")
    documents = [
        {"context": context, "choices": choices, "label": 0}
        for context, choices in SHAPES.values()
    ]
    write_documents(root / "test.jsonl", documents)
    write_documents(root / "train.jsonl", documents[2:5])
    for config in TASKS:
        write_task(root, config, root)
    return root


@pytest.fixture(scope="module", params=MODELS)
def on_a_model(request, folder):
    """A model, its tokenizer and what the stock harness says.

    Without its cache of logits: see :func:`test_the_stock_cache_of_logits`.
    """
    model, tokenizer = make(request.param, torch.device(devices()[-1]))
    tasks = [t["task"] for t in TASKS]
    samples = {task: list(range(len(SHAPES))) for task in tasks}
    return model, tokenizer, stock(model, tokenizer, tasks, samples, folder, logits_cache=False)


@pytest.mark.parametrize("batch_size", ["auto", 1, 5])
def test_every_shape(on_a_model, folder, batch_size):
    model, tokenizer, results = on_a_model
    splits = {"search": None, "select": 0, "test": 0}
    evaluator = LmEval(OBJECTIVES, include_path=folder, splits=splits, batch_size=batch_size)
    evaluator.prepare(model, tokenizer)
    scores = evaluator.evaluate(model, None, "search")
    for config in TASKS:
        assert_same_answers(evaluator, results, "search", config["task"])
    assert_same_scores(scores, evaluator, results, "search")


def test_the_stock_cache_of_logits(on_a_model, folder):
    """Where lm-eval's answer depends on what else is asked, ours is its answer without a cache.

    Its ``HFLM`` keys logits by all tokens but the last, and for a continuation that is shorter
    than the one they were made for, it reads them at the first position instead of the last.
    """
    model, tokenizer, uncached = on_a_model
    found = []
    for ids in ([5], [5, 7]):
        results = stock(model, tokenizer, ["shapes"], {"shapes": ids}, folder)
        found.append(answers(results)["a context is the beginning of the next"])
    alone, in_company = found
    assert alone == pytest.approx(answers(uncached)["a context is the beginning of the next"])
    assert abs(alone[0] - in_company[0]) > 0.1


def answers(results):
    """Shape to the log-likelihoods of its choices, by the stock harness."""
    names = list(SHAPES)
    return {
        names[s["doc_id"]]: [resps[0][0] for resps in s["resps"]]
        for s in results["samples"]["shapes"]
    }


@pytest.mark.parametrize(("n", "fits"), [(72, True), (73, False)])
def test_a_continuation_as_long_as_the_window(tmp_path, n, fits):
    """lm-eval asserts that a continuation is no longer than the window; here it is an error."""
    model, tokenizer = make("short", torch.device(devices()[-1]))
    piece = next(p for p in ("Q", "#", "7") if len(tokenizer(p * 4)["input_ids"]) == 4)
    document = {"context": "stone", "choices": [piece * n, "a"], "label": 0}
    write_documents(tmp_path / "test.jsonl", [document])
    write_documents(tmp_path / "train.jsonl", [document])
    write_task(tmp_path, TASK, tmp_path)
    splits = {"search": 1, "select": 0, "test": 0}
    evaluator = LmEval(OBJECTIVES[:1], include_path=tmp_path, splits=splits)
    if not fits:
        with pytest.raises(TaskError, match=r"73 continuation tokens.*max_length \(72\)"):
            evaluator.prepare(model, tokenizer)
        return
    evaluator.prepare(model, tokenizer)
    evaluator.evaluate(model, None, "search")
    results = stock(model, tokenizer, ["shapes"], {"shapes": [0]}, tmp_path)
    assert_same_answers(evaluator, results, "search", "shapes")


def test_the_documents_that_are_asked_do_not_matter(folder):
    """A document's log-likelihoods do not depend on its company in a batch."""
    model, tokenizer = make("llama", torch.device(devices()[-1]))
    found = []
    for size in (None, 6):
        splits = {"search": size, "select": 0, "test": 0}
        evaluator = LmEval(OBJECTIVES[:1], include_path=folder, splits=splits)
        evaluator.prepare(model, tokenizer)
        evaluator.evaluate(model, None, "search")
        instances = evaluator._built["search"].instances["shapes"]
        found.append({json.dumps([i.doc, i.idx]): i.resps[0][0] for i in instances})
    everything, some = found
    assert len(some) < len(everything)
    for request, ll in some.items():
        assert ll == pytest.approx(everything[request], abs=1e-5)


def test_the_tokenizers_merge_across_the_border():
    """What "arc_easy_joined" is for: a context has other tokens alone than before a word."""
    tokenizer = make("llama", torch.device("cpu"))[1]
    alone = tokenizer("Question: light?\nAnswer:")["input_ids"]
    joined = tokenizer("Question: light?\nAnswer:green bird")["input_ids"]
    assert joined[: len(alone)] != alone
