"""LmEval follows the weights, travels light and builds nothing again."""

from __future__ import annotations

import itertools
import json
import pickle
import re
import shlex
import time

import numpy as np
import pytest
import torch

from evomerge.errors import StudyError
from evomerge.evaluators.lm_eval import LmEval
from evomerge.trial import Objective

from .toys import (
    GENERATE,
    MC,
    OBJECTIVES,
    SPLITS,
    build,
    make_documents,
    make_model,
    write_documents,
    write_task,
)


def test_scores_follow_the_weights(evaluator, model):
    first = evaluator.evaluate(model, None, "search")
    again = evaluator.evaluate(model, None, "search")
    assert first.values == again.values
    for name, values in first.per_example.items():
        np.testing.assert_array_equal(values, again.per_example[name])
    saved = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    changed = evaluator.evaluate(model, None, "search")
    assert all(first.values[name] != changed.values[name] for name in ("text", "last"))
    with torch.no_grad():
        for p, old in zip(model.parameters(), saved, strict=True):
            p.copy_(old)
    assert evaluator.evaluate(model, None, "search").values == first.values


def test_prepare_leaves_the_model_and_the_tokenizer_alone(task_folder, device, tokenizer):
    for tied in (False, True):
        model = make_model(device, tie_word_embeddings=tied)
        before = {n: (p, p.data_ptr()) for n, p in model.named_parameters()}
        evaluator = build(task_folder)
        evaluator.prepare(model, tokenizer)
        evaluator.evaluate(model, None, "search")
        after = dict(model.named_parameters())
        assert list(before) == list(after)
        assert all(after[n] is p and p.data_ptr() == at for n, (p, at) in before.items())
        assert tokenizer.pad_token is None


def test_reported_objectives_are_scored_on_the_test_split_only(evaluator, model):
    searched = {o.name for o in OBJECTIVES if o.search}
    for split, n in (("search", 11), ("select", 10)):
        assert set(evaluator.evaluate(model, None, split).values) == searched
        assert evaluator.documents(split) == dict.fromkeys(searched, n)
    everything = {o.name for o in OBJECTIVES}
    assert set(evaluator.evaluate(model, None, "test").values) == everything
    assert evaluator.documents("test") == dict.fromkeys(everything, 40 - 11 - 10)


def test_templates_are_compiled_once(evaluator, model, monkeypatch):
    import jinja2

    evaluator.evaluate(model, None, "search")
    compiled = []
    real = jinja2.Environment.compile
    monkeypatch.setattr(
        jinja2.Environment, "compile", lambda *a, **k: compiled.append(a) or real(*a, **k)
    )
    evaluator.evaluate(model, None, "search")
    assert not compiled


def test_reported_tasks_are_not_asked_during_the_search(task_folder, model, tokenizer):
    objectives = [OBJECTIVES[0], Objective("t", "toy_generate", "exact_match", "strict",
                                           search=False)]  # fmt: skip
    evaluator = build(task_folder, objectives)
    evaluator.prepare(model, tokenizer)
    assert list(evaluator.samples("search")) == ["toy_choice"]
    assert list(evaluator.samples("test")) == ["toy_choice", "toy_generate"]


def test_pickle_is_light_and_gives_the_same_scores(evaluator, model, tokenizer, monkeypatch):
    first = evaluator.evaluate(model, None, "search")
    data = pickle.dumps(evaluator)
    assert len(data) < 20_000
    import lm_eval.tasks._index

    def no_index(*args, **kwargs):
        raise AssertionError("a worker must not index tasks")

    monkeypatch.setattr(lm_eval.tasks._index.TaskIndex, "_iter_yaml_files", no_index)
    copy = pickle.loads(data)
    with pytest.raises(StudyError, match="before prepare"):
        copy.evaluate(model, None, "search")
    start = time.process_time()
    copy.prepare(model, tokenizer)
    assert time.process_time() - start < 5
    assert copy.evaluate(model, None, "search").values == first.values
    assert copy.fingerprint() == evaluator.fingerprint()


def test_nothing_is_built_per_candidate(evaluator, model, monkeypatch):
    evaluator.evaluate(model, None, "search")

    def never(*args, **kwargs):
        raise AssertionError("built again")

    monkeypatch.setattr("lm_eval.api.task.Task.build_all_requests", never)
    monkeypatch.setattr(evaluator._live.lm, "loglikelihood", never)
    evaluator.evaluate(model, None, "search")


def test_splits_are_disjoint_and_do_not_depend_on_the_order(tmp_path):
    documents = make_documents(30, seed=3)
    documents += documents[:6]
    contents = []
    for turn in range(2):
        root = tmp_path / str(turn)
        root.mkdir()
        write_documents(root / "train.jsonl", documents[:2])
        write_documents(root / "test.jsonl", documents)
        write_task(root, MC, root)
        evaluator = build(root, OBJECTIVES[:1], splits={"search": 10, "select": 10})
        held = [evaluator.samples(s)["toy_choice"] for s in ("search", "select", "test")]
        assert sorted(itertools.chain(*held)) == list(range(36))
        assert len(held[0]) == len(held[1]) == 10
        assert all(ids == sorted(ids) for ids in held)
        texts = [{json.dumps(documents[i]) for i in ids} for ids in held]
        assert len(set.union(*texts)) == sum(map(len, texts)) == 30
        contents.append(texts)
        documents = documents[::-1]
    assert contents[0] == contents[1]
    other = build(
        tmp_path / "1", OBJECTIVES[:1], splits={"search": 10, "select": 10}, split_seed=1
    )
    assert other.samples("search") != evaluator.samples("search")


def test_fingerprint(task_folder, tmp_path):
    base = build(task_folder).fingerprint()
    json.dumps(base)
    assert str(task_folder) not in json.dumps(base)
    assert base == build(task_folder, batch_size=2).fingerprint()
    for change in ({"num_fewshot": 1}, {"split_seed": 5}, {"splits": SPLITS | {"search": 9}},
                   {"gen_kwargs": {"max_gen_toks": 9}}, {"max_length": 99}):  # fmt: skip
        assert base != build(task_folder, **change).fingerprint()
    data = task_folder.parent / "data"
    moved = tmp_path / "yaml"
    moved.mkdir()
    for task in ("toy_choice", "toy_generate"):
        write_task(moved, MC if task == "toy_choice" else GENERATE, data)
    objectives = [OBJECTIVES[0], OBJECTIVES[-1]]
    same = build(moved, objectives).fingerprint()
    assert same == build(task_folder, objectives).fingerprint()
    write_task(moved, MC, data, doc_to_text="Question: {{question}}\nA:")
    assert same != build(moved, objectives).fingerprint()


def test_scores_depend_on_one_split(task_folder):
    """Other splits' documents and objectives that are not scored do not count; the rest does."""
    base = build(task_folder)
    search = base.scores_depend_on("search")
    assert str(task_folder) not in json.dumps(search)
    assert search != base.scores_depend_on("select")
    less = build(task_folder, splits=SPLITS | {"test": 9})
    assert search == less.scores_depend_on("search")
    assert base.scores_depend_on("test") != less.scores_depend_on("test")
    guiding = [o for o in OBJECTIVES if o.guides]
    assert search == build(task_folder, guiding).scores_depend_on("search")
    assert search != build(task_folder, guiding[1:]).scores_depend_on("search")
    for change in ({"num_fewshot": 1}, {"split_seed": 5}, {"gen_kwargs": {"max_gen_toks": 9}}):
        assert search != build(task_folder, **change).scores_depend_on("search")
    code = task_folder / "metric.py"
    code.write_text("def score(): return 1")
    assert search != base.scores_depend_on("search")  # a metric of the task's own may have changed
    code.unlink()
    assert search == base.scores_depend_on("search")


def test_stock_command(evaluator, tmp_path):
    files = evaluator.write_samples(tmp_path)
    (line,) = evaluator.stock_command("/m/a b", "search", files["search"])
    words = shlex.split(line)
    assert words[:4] == ["lm_eval", "run", "--model", "hf"]
    assert json.loads(words[words.index("--model_args") + 1])["pretrained"] == "/m/a b"
    assert words[words.index("--samples") + 1] == str(files["search"])
    assert json.loads(files["search"].read_text()) == evaluator.samples("search")
    (inline,) = evaluator.stock_command("/m", "test")
    words = shlex.split(inline)
    assert json.loads(words[words.index("--samples") + 1]) == evaluator.samples("test")
    assert "pretrained=/m,dtype=float32" in words


def test_broken_weights_are_a_floating_point_error(evaluator, model, task_folder, tokenizer):
    generating = build(task_folder, OBJECTIVES[-1:])
    generating.prepare(model, tokenizer)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not numbers"):
        evaluator.evaluate(model, None, "search")
    with pytest.raises(FloatingPointError, match="not finite"):
        generating.evaluate(model, None, "search")


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_few_broken_answers_are_enough(task_folder, model, tokenizer, value):
    """One token's row overflowed: most requests do without it, and still there is no score."""
    splits = {"search": None, "select": 0, "test": 0}
    evaluator = build(task_folder, OBJECTIVES[:1], splits=splits)
    evaluator.prepare(model, tokenizer)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("f")] = float(value)
    with pytest.raises(FloatingPointError, match="not numbers") as caught:
        evaluator.evaluate(model, None, "search")
    broken, asked = map(int, re.findall(r"(\d+) of (\d+) requests", str(caught.value))[0])
    assert 0 < broken < asked


def test_list_tasks(task_folder):
    assert LmEval.list_tasks(task_folder) == sorted(
        ["toy_choice", "toy_letter", "toy_last", "toy_text", "toy_generate"]
    )


def test_quiet(task_folder, model, tokenizer, capfd, caplog):
    evaluator = build(task_folder)
    evaluator.prepare(model, tokenizer)
    evaluator.evaluate(model, None, "search")
    out, err = capfd.readouterr()
    assert (out, err, caplog.text) == ("", "", "")
