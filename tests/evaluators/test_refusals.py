"""What LmEval refuses, and what it says."""

from __future__ import annotations

import pickle

import pytest

from evomerge.errors import ConfigError, TaskError, UnknownNameError
from evomerge.trial import Objective

from .toys import LL, MC, OBJECTIVES, build, make_documents, write_documents, write_task


@pytest.mark.parametrize(
    ("objective", "error", "message"),
    [
        (Objective("o", "toy_choice", "accuracy"), UnknownNameError, "Did you mean 'acc'"),
        (
            Objective("o", "toy_generate", "exact_match", "strickt"),
            UnknownNameError,
            "filter 'strickt'.*Did you mean 'strict'",
        ),
        (Objective("o", "toy_choice", "acc", direction="minimize"), ConfigError, "better when hi"),
        ({"name": "o", "task": "toy_choice"}, ConfigError, "lacks metric"),
        ({"name": "o", "task": "t", "metric": "m", "wait": 1}, ConfigError, "field.*wait"),
    ],
)
def test_objectives_that_do_not_fit(task_folder, objective, error, message):
    with pytest.raises(error, match=message):
        build(task_folder, [objective])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"splits": {"search": 30, "select": 20}}, TaskError, "40 documents, too few.*50 are"),
        ({"splits": {"search": 40, "select": 0}}, TaskError, "test would get none"),
        ({"splits": {"search": 0.01, "select": 1}}, TaskError, "search would get none"),
        ({"splits": {"search": 0}}, ConfigError, "must not be 0"),
        ({"splits": {"select": None}}, ConfigError, "only one split"),
        ({"splits": {"serach": 3}}, UnknownNameError, "Did you mean 'search'"),
        ({"splits": {"search": 1.5}}, ConfigError, "count or a share"),
        ({"num_fewshot": 13}, TaskError, "no prompt with 13 few-shot"),
        ({"batch_size": 0}, ConfigError, "batch_size"),
        ({"fewshot_as_multiturn": True}, ConfigError, "needs apply_chat_template"),
        ({"include_path": "/nowhere"}, TaskError, "not a folder"),
    ],
)
def test_settings_that_do_not_fit(task_folder, settings, error, message):
    with pytest.raises(error, match=message):
        build(task_folder, **settings)


def test_unknown_task(task_folder, monkeypatch):
    from lm_eval.tasks import TaskManager

    none = TaskManager(include_defaults=False)
    monkeypatch.setattr("evomerge.evaluators.tasks._stock", lambda: none)
    with pytest.raises(UnknownNameError, match=r"toy_choise.*Did you mean 'toy_choice'.*yaml"):
        build(task_folder, [Objective("o", "toy_choise", "acc")])


def test_a_group_without_a_score_is_not_a_task(task_folder, tmp_path):
    write_task(tmp_path, MC, task_folder.parent / "data", tag="toys")
    (tmp_path / "g.yaml").write_text("group: toy_group\ntask: [toy_choice]\n")
    for name in ("toys", "toy_group"):
        with pytest.raises(
            TaskError, match=r"has no score of its own\. Name tasks, one objective each: toy_ch"
        ):
            build(tmp_path, [Objective("o", name, "acc")])


def test_groups_that_cannot_be_scored(task_folder, tmp_path):
    write_task(tmp_path, MC, task_folder.parent / "data")
    score = "aggregate_metric_list: [{metric: acc}]"
    group = tmp_path / "g.yaml"
    group.write_text(f"group: g\ntask: [{{task: toy_choice, num_fewshot: 2}}]\n{score}\n")
    with pytest.raises(TaskError, match="changes the settings of toy_choice"):
        build(tmp_path, [Objective("o", "g", "acc")])
    group.write_text(f"group: g\ntask: [toy_choice]\n{score}\n")
    with pytest.raises(UnknownNameError, match=r"acc_norn.*Did you mean 'acc'.*group 'g'"):
        build(tmp_path, [Objective("o", "g", "acc_norn")])
    with pytest.raises(ConfigError, match="better when hi"):
        build(tmp_path, [Objective("o", "g", "acc", direction="minimize")])
    build(tmp_path, [Objective("o", "g", "acc")])


def test_unreadable_files_are_named(tmp_path, task_folder):
    data = task_folder.parent / "data"
    write_task(tmp_path, MC, data)
    broken = tmp_path / "broken.yaml"
    broken.write_text("task: x\nmetric_list:\n  - metric: [acc\n")
    with pytest.raises(TaskError, match=r"broken\.yaml:4: not valid YAML"):
        build(tmp_path, OBJECTIVES[:1])
    broken.write_text("include: missing.yaml\ntask: x\n")
    with pytest.raises(TaskError, match=r"broken\.yaml: cannot be read.*missing\.yaml"):
        build(tmp_path, OBJECTIVES[:1])
    broken.unlink()
    write_task(tmp_path, LL, data, dataset_kwargs={"data_files": {"test": "gone.jsonl"}})
    with pytest.raises(TaskError, match=r"'toy_last'.*could not be loaded.*gone\.jsonl"):
        build(tmp_path, [OBJECTIVES[5]])


def test_documents_that_changed_under_a_worker(tmp_path, model, tokenizer):
    for name, seed in (("train", 1), ("test", 2)):
        write_documents(tmp_path / f"{name}.jsonl", make_documents(20, seed))
    write_task(tmp_path, MC, tmp_path)
    copy = pickle.loads(
        pickle.dumps(build(tmp_path, OBJECTIVES[:1], splits={"search": 5, "select": 5}))
    )
    write_documents(tmp_path / "test.jsonl", make_documents(20, seed=3))
    with pytest.raises(TaskError, match="not those that the driver saw"):
        copy.prepare(model, tokenizer)


def test_data_that_a_worker_lacks(tmp_path, model, tokenizer):
    """The worker says which task and which file; an empty file is no data either."""
    for name, seed in (("train", 1), ("test", 2)):
        write_documents(tmp_path / f"{name}.jsonl", make_documents(20, seed))
    write_task(tmp_path, MC, tmp_path)
    copy = pickle.loads(
        pickle.dumps(build(tmp_path, OBJECTIVES[:1], splits={"search": 5, "select": 5}))
    )
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(TaskError, match=r"'toy_choice'.*could not be loaded.*test\.jsonl"):
        copy.prepare(model, tokenizer)
    (tmp_path / "test.jsonl").write_text("")
    with pytest.raises(TaskError, match=r"'toy_choice'.*could not be loaded"):
        copy.prepare(model, tokenizer)


def test_a_split_without_documents(task_folder, model, tokenizer):
    evaluator = build(task_folder, OBJECTIVES[:1], splits={"search": 5, "select": 0, "test": 0})
    evaluator.prepare(model, tokenizer)
    with pytest.raises(TaskError, match="select split has no documents"):
        evaluator.evaluate(model, None, "select")


def test_missing_chat_template(task_folder, model, tokenizer):
    evaluator = build(task_folder, OBJECTIVES[:1], apply_chat_template=True)
    with pytest.raises(ConfigError, match="no chat template"):
        evaluator.prepare(model, tokenizer)
