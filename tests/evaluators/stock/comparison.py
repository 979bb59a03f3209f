"""LmEval beside the stock harness: the same model, the same documents, every number."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

RATES = {"word_perplexity", "byte_perplexity", "bits_per_byte"}


@contextlib.contextmanager
def no_environment() -> Iterator[None]:
    """Without the eleven subprocesses in which the harness looks at the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
        yield


def stock(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[Any],
    samples: dict[str, list[int]],
    folder: Path | None = None,
    *,
    batch_size: int = 16,
    logits_cache: bool = True,
    **settings: Any,
) -> dict[str, Any]:
    """The stock harness.

    Args:
        model: The model.
        tokenizer: Its tokenizer; a copy of it is used.
        tasks: Names or lm-eval ``Task`` objects.
        samples: Task to the ascending indices of its documents.
        folder: Where names are looked up.
        batch_size: Requests per forward pass.
        logits_cache: As ``HFLM`` takes it: whether requests of equal input share logits.
        settings: Of ``simple_evaluate``.
    """
    import lm_eval.evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    include = str(folder) if folder else None
    manager = TaskManager(include_path=include, include_defaults=False)
    lm = HFLM(
        pretrained=model,
        tokenizer=copy.deepcopy(tokenizer),
        batch_size=batch_size,
        logits_cache=logits_cache,
    )
    with no_environment():
        return lm_eval.evaluator.simple_evaluate(
            model=lm,
            tasks=list(tasks),
            samples=samples,
            task_manager=manager,
            bootstrap_iters=0,
            **settings,
        )


def assert_same_answers(evaluator: Any, results: dict[str, Any], split: str, task: str) -> None:
    """Every response to every request: log-likelihoods to 1e-5, greedy flags and texts exactly."""
    instances = evaluator._built[split].instances[task]
    documents = {s["doc_id"]: s for s in results["samples"][task]}
    assert sorted(documents) == evaluator.samples(split)[task]
    for index, doc_id in enumerate(evaluator.samples(split)[task]):
        ours = sorted((i for i in instances if i.doc_id == index), key=lambda i: i.idx)
        theirs = documents[doc_id]
        assert [i.args for i in ours] == theirs["arguments"]
        for mine, want in zip((i.resps for i in ours), theirs["resps"], strict=True):
            assert len(mine) == len(want)
            for a, b in zip(mine, want, strict=True):
                if isinstance(b, str):
                    assert a == b
                    continue
                (ll, *greedy), (want_ll, *want_greedy) = np.atleast_1d(a), np.atleast_1d(b)
                assert ll == pytest.approx(want_ll, rel=1e-6, abs=1e-5)
                assert greedy == want_greedy


def assert_same_scores(scores: Any, evaluator: Any, results: dict[str, Any], split: str) -> None:
    """The metric of every objective, and its value on every document."""
    for o in evaluator.objectives:
        if split != "test" and not o.guides:
            assert o.name not in scores.values
            continue
        raw = results["results"][o.task][f"{o.metric},{o.filter}"]
        assert o.sign * scores.values[o.name] == pytest.approx(raw, rel=1e-5, abs=1e-9), o.name
        if o.task not in results["samples"]:  # a group
            continue
        logged = [s for s in results["samples"][o.task] if s["filter"] == o.filter]
        logged.sort(key=lambda s: s["doc_id"])
        want = per_document(o.metric, [s[o.metric] for s in logged])
        if want is None:
            assert scores.per_example[o.name] is None
            continue
        assert scores.per_example[o.name].dtype == np.float32
        np.testing.assert_allclose(
            scores.per_example[o.name],
            o.sign * want,
            rtol=2e-5,
            atol=1e-5 * max(1, abs(raw)),
        )
        assert scores.per_example[o.name].mean() == pytest.approx(scores.values[o.name], rel=1e-4)


def per_document(metric: str, items: list[Any]) -> np.ndarray | None:
    """What the documents' values should be: their mean is the metric; None for a corpus metric."""
    if metric in RATES:
        ll, n = np.array(items).T
        rate = -ll.sum() / n.sum()
        change = (-ll - rate * n) / n.mean()
        bits = metric == "bits_per_byte"
        return (rate + change) / math.log(2) if bits else math.exp(rate) * (1 + change)
    if metric == "perplexity":
        return math.exp(-np.mean(items)) * (1 - (np.array(items) - np.mean(items)))
    if metric == "brier_score":
        return np.array([((np.eye(len(p))[gold] - p) ** 2).sum() for gold, p in items])
    return None if any(np.ndim(item) for item in items) else np.array(items, dtype=float)
