"""Objectives beside the tasks' metrics: distance from the base, length of the answers."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from evomerge.errors import ConfigError, StudyError, UnknownNameError
from evomerge.evaluators.together import Together
from evomerge.evaluators.weights import Weights
from evomerge.experts import ExpertPool
from evomerge.materialize import LiveModel, Merger
from evomerge.space import SearchSpace
from evomerge.trial import Objective
from tests.executors.probe import Probe

from .toys import build

FAR = Objective("far", "weights", "distance", direction="minimize")
LENGTH = Objective("length", "toy_generate", "output_tokens", "strict", direction="minimize")
EXACT = Objective("strict", "toy_generate", "exact_match", "strict")


@pytest.fixture(scope="module")
def pool(family):
    return ExpertPool.open(
        str(family["base"]), {k: str(p) for k, p in family.items() if k != "base"}
    )


def test_distance_is_the_relative_norm_of_the_change(pool, device):
    live = LiveModel(pool, device, "float32")
    scorer = Weights([FAR], pool)
    with pytest.raises(StudyError, match="before prepare"):
        scorer.evaluate(live.model, None, "search")
    scorer.prepare(live.model, live.tokenizer)
    assert scorer.evaluate(live.model, None, "search").values == {"far": 0.0}
    space = SearchSpace({"method": "task_arithmetic", "groups": {"blocks": "each"}}, pool)
    recipe = space.decode(np.random.default_rng(0).random(space.dim))
    merger = Merger(pool, recipe.method, recipe.fixed)
    merger.merge(recipe, live.tensors)
    change = norm = 0.0
    for name, tensor in live.tensors.items():
        base = pool.base.tensor(name).double()
        change += float((tensor.cpu().double() - base).square().sum())
        norm += float(base.square().sum())
    scores = scorer.evaluate(live.model, recipe, "search")
    assert scores.values["far"] == pytest.approx(-((change / norm) ** 0.5), rel=1e-5)
    assert scores.stderr == {"far": 0.0}
    assert scores.per_example == {"far": None}


def test_a_worker_maps_the_base_itself(pool, device):
    live = LiveModel(pool, device, "float32")
    scorer = Weights([FAR], pool)
    scorer.prepare(live.model, live.tokenizer)
    copy = pickle.loads(pickle.dumps(scorer))
    copy.prepare(live.model, live.tokenizer)
    assert copy.evaluate(live.model, None, "search").values == {"far": 0.0}


def test_broken_weights_are_a_floating_point_error(pool, device):
    live = LiveModel(pool, device, "float32")
    scorer = Weights([FAR], pool)
    scorer.prepare(live.model, live.tokenizer)
    next(iter(live.tensors.values())).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="not finite"):
        scorer.evaluate(live.model, None, "search")


def test_nonsense_is_refused(pool, family):
    with pytest.raises(UnknownNameError, match="distance"):
        Weights([Objective("far", "weights", "distanse", direction="minimize")], pool)
    with pytest.raises(ConfigError, match="minimize"):
        Weights([Objective("far", "weights", "distance")], pool)
    alone = ExpertPool.open(None, {k: str(p) for k, p in family.items() if k != "base"})
    with pytest.raises(ConfigError, match=r"models\.base"):
        Weights([FAR], alone)


def test_output_tokens_counts_what_was_generated(task_folder, model, tokenizer):
    evaluator = build(task_folder, [EXACT, LENGTH])
    evaluator.prepare(model, tokenizer)
    scores = evaluator.evaluate(model, None, "search")
    answers = [i.resps[0] for i in evaluator._built["search"].instances["toy_generate"]]
    counts = [len(a.encode()) for a in answers]  # the toy tokenizer has one token per byte
    assert scores.values["length"] == pytest.approx(-np.mean(counts))
    assert scores.per_example["length"].tolist() == pytest.approx([-c for c in counts])
    assert max(counts) > 0
    plain = build(task_folder, [EXACT])
    plain.prepare(model, tokenizer)
    assert plain.evaluate(model, None, "search").values["strict"] == scores.values["strict"]


def test_output_tokens_needs_a_generating_task(task_folder):
    with pytest.raises(UnknownNameError, match="output_tokens"):
        build(task_folder, [Objective("a", "toy_choice", "output_tokens")])


def test_together_scores_everything_in_declared_order(task_folder, pool, device, tokenizer):
    live = LiveModel(pool, device, "float32")
    tasks = [EXACT, LENGTH]
    main = build(task_folder, tasks)
    both = Together(main, [Weights([FAR], pool)], (EXACT, FAR, LENGTH))
    both.prepare(live.model, live.tokenizer)
    scores = both.evaluate(live.model, None, "search")
    assert list(scores.values) == ["strict", "far", "length"]
    assert both.documents("search") == {"strict": 11, "length": 11}
    assert {"tasks", "weights"} <= both.fingerprint().keys()
    assert {"LmEval", "Weights"} <= both.scores_depend_on("search").keys()
    assert Together(main, [Probe(task_folder)], tasks).scores_depend_on("search") is None
    assert "toy_generate" in both.stock_command("m", "search")[0]
