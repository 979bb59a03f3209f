"""Fixtures for the evaluators."""

from __future__ import annotations

import pytest

from .toys import TASKS, build, make_documents, make_model, write_documents, write_task


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory):
    """A folder with every toy task over 40 documents; its data lie beside it."""
    root = tmp_path_factory.mktemp("tasks")
    data, folder = root / "data", root / "yaml"
    data.mkdir()
    folder.mkdir()
    write_documents(data / "test.jsonl", make_documents(40, seed=0))
    write_documents(data / "train.jsonl", make_documents(12, seed=1))
    for config in TASKS:
        write_task(folder, config, data)
    return folder


@pytest.fixture(scope="session")
def tokenizer():
    """One token per byte, with a beginning-of-text token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(["<s>", "</s>", *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")


@pytest.fixture
def model(device):
    return make_model(device)


@pytest.fixture
def evaluator(task_folder, model, tokenizer):
    built = build(task_folder)
    built.prepare(model, tokenizer)
    return built
