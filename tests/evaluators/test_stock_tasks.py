"""lm-eval's own configurations give what the stock harness gives, on models of several kinds."""

from __future__ import annotations

import shlex

import pytest
import torch

from evomerge.evaluators.lm_eval import LmEval
from evomerge.trial import Objective
from tests.conftest import devices

from .stock.comparison import assert_same_answers, assert_same_scores, stock
from .stock.configurations import ROWS, objectives, task_name, write
from .stock.models import MODELS, make

SPLITS = {"search": 4, "select": 0}
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


EVEN = """
group: even
task: [mmlu_virology, {group: inner, task: [mmlu_sociology]}]
aggregate_metric_list: {metric: acc, weight_by_size: false}
"""


@pytest.mark.parametrize(
    ("group", "beside", "command"),
    [
        ("mmlu", ["mmlu_stem"], "mmlu"),
        ("mmlu", ["mmlu_virology"], "mmlu_virology,mmlu_philosophy,mmlu_sociology,mmlu_anatomy"),
        ("even", [], "even"),
    ],
)
def test_groups(folder, group, beside, command):
    """A group of groups of tags, beside a part of it or one of its tasks; an unweighted group."""
    (folder / "even.yaml").write_text(EVEN)
    every = [Objective(name, name, "acc") for name in (group, *beside)]
    evaluator = LmEval(every, include_path=folder, splits={"search": 0.5, "select": 0})
    model, tokenizer = make("llama", torch.device(devices()[-1]))
    evaluator.prepare(model, tokenizer)
    scores = evaluator.evaluate(model, None, "search")
    samples = evaluator.samples("search")
    sizes = [len(ids) for ids in samples.values()]
    assert len(set(sizes)) > 1
    results = stock(model, tokenizer, [group], samples, folder)
    assert_same_scores(scores, evaluator, results, "search")
    documents = scores.per_example[group]
    assert len(documents) == evaluator.documents("search")[group] == sum(sizes)
    assert documents.mean() == pytest.approx(scores.values[group])
    (line,) = evaluator.stock_command("/m", "search")
    words = shlex.split(line)
    assert set(words[words.index("--tasks") + 1].split(",")) == set(command.split(","))


def test_the_error_of_a_group(folder):
    """That of a stratified sample: close to lm-eval's pooled one."""
    from lm_eval.api.metrics import pooled_sample_stderr

    tasks = [f"mmlu_{subject}" for subject in ("anatomy", "virology", "sociology", "philosophy")]
    every = [Objective(name, name, "acc") for name in ("mmlu", *tasks)]
    evaluator = LmEval(every, include_path=folder, splits={"search": 0.9, "select": 0})
    model, tokenizer = make("llama", torch.device(devices()[-1]))
    evaluator.prepare(model, tokenizer)
    scores = evaluator.evaluate(model, None, "search")
    sizes = [evaluator.documents("search")[t] for t in tasks]
    pooled = pooled_sample_stderr([scores.stderr[t] for t in tasks], sizes)
    assert scores.stderr["mmlu"] == pytest.approx(pooled, rel=0.05)
