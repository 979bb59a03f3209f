"""Models and a task of 50 documents with 4 choices, for benchmarks/vs_mergekit_evolve.py.

The same folders are read by evomerge and by mergekit-evolve.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import yaml

N_DOCUMENTS, N_CHOICES = 50, 4
HIDDEN, LAYERS, VOCABULARY, INNER = 768, 12, 32_000, 2176
TASK = "benchmark_choice"


@dataclasses.dataclass(frozen=True)
class Case:
    """Models and one task; ``folder`` holds the task's YAML file and documents."""

    base: Path
    experts: dict[str, Path]
    layers: int
    folder: Path


def write_task(folder: Path, documents: Sequence[dict[str, object]], delimiter: str) -> None:
    """The task as both tools read it."""
    assert len(documents) == N_DOCUMENTS, "every candidate answers the same questions"
    data = folder / "documents.jsonl"
    data.write_text("".join(json.dumps(d) + "\n" for d in documents))
    config = {
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": delimiter,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / f"{TASK}.yaml").write_text(yaml.safe_dump(config))


def sums(zoo: Path) -> list[dict[str, object]]:
    """An example and a question of the zoo's arithmetic, with three wrong answers."""
    rng, found = random.Random(0), {}
    for row in json.loads((zoo / "tasks" / "zoo_math_exact.json").read_text()):
        lines = row["prompt"].split("\n")
        right = int(row["answer"])
        wrong = rng.sample([n for n in range(max(0, right - 9), right + 10) if n != right], 3)
        choices = rng.sample([right, *wrong], N_CHOICES)
        found.setdefault(
            "\n".join(lines[-2:]),
            {"choices": [str(n) for n in choices], "answer": choices.index(right)},
        )
    return [{"context": text, **rest} for text, rest in found.items()]


def code(zoo: Path) -> list[dict[str, object]]:
    """Some lines of source code, and the next one beside three spoiled ones."""
    rows = json.loads((zoo / "tasks" / "zoo_code_choice.json").read_text())
    return list({json.dumps(row): row for row in rows}.values())


def zoo_case(folder: Path, documents: Callable[[Path], list[dict[str, object]]] = sums) -> Case:
    """The built-in models; built first where they are not in the cache folder."""
    from evomerge.zoo import build_zoo

    zoo = Path(build_zoo(size="small"))
    write_task(folder, documents(zoo)[:N_DOCUMENTS], "")
    experts = {name: zoo / name for name in ("code", "prose", "math")}
    return Case(zoo / "base", experts, 4, folder)


def llama_case(folder: Path) -> Case:
    """Random weights of a useful size; experts are 2% away from the base."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<s>", "</s>", *(f"w{i}" for i in range(VOCABULARY - 2))]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="</s>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=INNER,
        num_hidden_layers=LAYERS, num_attention_heads=12, num_key_value_heads=6,
        max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    start = {name: p.clone() for name, p in model.named_parameters()}
    for name in ("base", "a", "b"):
        with torch.no_grad():
            for key, p in model.named_parameters():
                p.copy_(start[key])
                if name != "base":
                    p.add_(0.02 * torch.randn_like(p) * start[key].abs().mean())
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rng = random.Random(0)

    def text(n: int) -> str:
        return " ".join(rng.choice(words[2:]) for _ in range(n))

    documents = [
        {"context": text(6), "choices": [text(2) for _ in range(N_CHOICES)], "answer": i % 4}
        for i in range(N_DOCUMENTS)
    ]
    write_task(folder, documents, " ")
    return Case(folder / "base", {n: folder / n for n in "ab"}, LAYERS, folder)


CASES: dict[str, Callable[[Path], Case]] = {
    "zoo": zoo_case,
    "llama": llama_case,
    "zoo_code": lambda folder: zoo_case(folder, code),
}
