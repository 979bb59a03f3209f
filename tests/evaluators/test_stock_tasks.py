"""lm-eval's own configurations give what the stock harness gives, on models of several kinds."""

from __future__ import annotations

import pytest
import torch

from evomerge.evaluators.lm_eval import LmEval
from tests.conftest import devices

from .stock.comparison import assert_same_answers, assert_same_scores, stock
from .stock.configurations import ROWS, objectives, task_name, write
from .stock.models import MODELS, make

SPLITS = {"search": 6, "select": 0}
GENERATION = {"max_gen_toks": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stock")
    write(folder)
    return folder


@pytest.fixture(scope="module")
def evaluator(folder):
    """All configurations at once: requests of different tasks share batches."""
    every = [o for name in ROWS for o in objectives(name)]
    return LmEval(every, include_path=folder, splits=SPLITS, gen_kwargs=GENERATION)


@pytest.fixture(scope="module")
def stock_tasks(folder):
    """lm-eval's task objects, loaded by lm-eval."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return manager.load([task_name(name) for name in ROWS])["tasks"]


@pytest.fixture(scope="module", params=MODELS)
def compared(request, evaluator, stock_tasks):
    """Scores of ours and results of lm-eval, all configurations on one model."""
    model, tokenizer = make(request.param, torch.device(devices()[-1]))
    evaluator.prepare(model, tokenizer)
    scores = evaluator.evaluate(model, None, "search")
    samples = evaluator.samples("search")
    settings = {"gen_kwargs": dict(GENERATION)}
    return scores, stock(model, tokenizer, stock_tasks.values(), samples, **settings)


@pytest.mark.parametrize("name", ROWS)
def test_answers(name, compared, evaluator):
    _, results = compared
    assert_same_answers(evaluator, results, "search", task_name(name))


def test_scores(compared, evaluator):
    scores, results = compared
    assert_same_scores(scores, evaluator, results, "search")
