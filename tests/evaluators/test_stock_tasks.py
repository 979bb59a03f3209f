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


CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SETTINGS = {
    "two-shot": {"num_fewshot": 2},
    "chat": {"apply_chat_template": True, "num_fewshot": 1, "system_instruction": "Be brief."},
    "one turn": {"apply_chat_template": True, "num_fewshot": 2, "fewshot_as_multiturn": False},
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_prompts(settings, folder):
    """Few-shot examples and chat templates; "joined" has no space between the turns either way."""
    files = ("arc/arc_easy", "hellaswag/hellaswag", "winogrande/default", "gsm8k/gsm8k",
             "mmlu/default/mmlu_virology", "triviaqa/default", "lambada/lambada_openai",
             "arc/arc_easy@joined", "drop/default", "wikitext/wikitext")  # fmt: skip
    every = [o for name in files for o in objectives(name)]
    given = SETTINGS[settings]
    evaluator = LmEval(
        every, include_path=folder, splits=SPLITS, gen_kwargs=GENERATION, fewshot_seed=7, **given
    )
    model, tokenizer = make("llama", torch.device(devices()[-1]))
    tokenizer.chat_template = CHAT
    evaluator.prepare(model, tokenizer)
    scores = evaluator.evaluate(model, None, "search")
    chat = bool(given.get("apply_chat_template"))
    results = stock(
        model, tokenizer, evaluator.samples("search"), evaluator.samples("search"), folder,
        gen_kwargs=dict(GENERATION), fewshot_random_seed=7,
        **{"fewshot_as_multiturn": chat} | given,
    )  # fmt: skip
    for name in files:
        assert_same_answers(evaluator, results, "search", task_name(name))
    assert_same_scores(scores, evaluator, results, "search")
