"""A tiny random Llama, and one task of each kind with objectives on it."""

from __future__ import annotations

import json
import random

import torch
import yaml

from evomerge.evaluators.lm_eval import LmEval
from evomerge.trial import Objective

MC = {
    "task": "toy_choice",
    "output_type": "multiple_choice",
    "doc_to_text": "Q: {{question}}\nA:",
    "doc_to_target": "label",
    "doc_to_choice": "choices",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
        {"metric": "brier_score", "aggregation": "brier_score", "higher_is_better": False},
        {"metric": "mcc", "aggregation": "matthews_corrcoef", "higher_is_better": True},
    ],
}
LETTER = MC | {
    "task": "toy_letter",
    "doc_to_text": "{{question}} {{choices[0]}} or {{choices[1]}} or {{choices[2]}}?\nAnswer:",
    "doc_to_choice": ["A", "B", "C"],
    "metric_list": MC["metric_list"][:1],
}
LL = {
    "task": "toy_last",
    "output_type": "loglikelihood",
    "doc_to_text": "{{question}}",
    "doc_to_target": " {{choices[label]}}",
    "metric_list": [
        {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
    ],
}
ROLLING = {
    "task": "toy_text",
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{question}} {{question}} {{choices[0]}}",
    "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
}
GENERATE = {
    "task": "toy_generate",
    "output_type": "generate_until",
    "doc_to_text": "Q: {{question}}\nA:",
    "doc_to_target": "{{target}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 5, "do_sample": False},
    "filter_list": [
        {"name": "strict", "filter": [{"function": "take_first"}]},
        {
            "name": "lower",
            "filter": [{"function": "lowercase"}, {"function": "take_first"}],
        },
    ],
    "metric_list": [
        {
            "metric": "exact_match",
            "aggregation": "mean",
            "higher_is_better": True,
            "ignore_case": False,
        }
    ],
}
TASKS = (MC, LETTER, LL, ROLLING, GENERATE)


def make_documents(n: int, seed: int) -> list[dict]:
    rng = random.Random(seed)

    def word() -> str:
        return "".join(rng.choice("abcdef") for _ in range(rng.randint(1, 6)))

    return [
        {
            "question": " ".join(word() for _ in range(rng.randint(2, 8))),
            "choices": [word() for _ in range(3)],
            "label": rng.randrange(3),
            "target": word(),
        }
        for _ in range(n)
    ]


def write_documents(path, documents) -> None:
    path.write_text("".join(json.dumps(d) + "\n" for d in documents))


def write_task(folder, config: dict, data, **overrides) -> None:
    files = {"test": str(data / "test.jsonl"), "train": str(data / "train.jsonl")}
    config = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        "training_split": "train",
        "fewshot_split": "train",
        **config,
        **overrides,
    }
    (folder / f"{config['task']}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def make_model(device, seed: int = 0, **overrides):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    settings = {
        "vocab_size": 258,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "initializer_range": 0.15,
    }
    config = LlamaConfig(**settings | overrides)
    return LlamaForCausalLM(config).float().eval().to(device)


def make_t5(device):
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=258,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        initializer_factor=0.5,
        decoder_start_token_id=0,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return T5ForConditionalGeneration(config).float().eval().to(device)


OBJECTIVES = (
    Objective("choice", "toy_choice", "acc"),
    Objective("choice_norm", "toy_choice", "acc_norm"),
    Objective("brier", "toy_choice", "brier_score", direction="minimize"),
    Objective("mcc", "toy_choice", "mcc", search=False),
    Objective("letter", "toy_letter", "acc"),
    Objective("last", "toy_last", "perplexity", direction="minimize"),
    Objective("last_acc", "toy_last", "acc"),
    Objective("text", "toy_text", "bits_per_byte", direction="minimize"),
    Objective("words", "toy_text", "word_perplexity", direction="minimize"),
    Objective("strict", "toy_generate", "exact_match", "strict"),
    Objective("lower", "toy_generate", "exact_match", "lower"),
)
SPLITS = {"search": 11, "select": 0.25, "test": None}


def build(task_folder, objectives=OBJECTIVES, **settings) -> LmEval:
    settings = {"splits": SPLITS, "include_path": task_folder, "batch_size": 4} | settings
    return LmEval(objectives, **settings)
