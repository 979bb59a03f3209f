"""The zoo's lm-eval tasks: ordinary YAMLs, with their documents as json beside them.

For each domain one log-likelihood task (bits per byte) and one accuracy task. The YAMLs load
their json through a three-line function beside them, so that the folder may be moved and read
from anywhere, and nothing enters the cache of `datasets`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.zoo import arithmetic

TASKS = (
    "zoo_code_ll",
    "zoo_prose_ll",
    "zoo_math_ll",
    "zoo_code_choice",
    "zoo_prose_choice",
    "zoo_math_exact",
)
"""Every task, the log-likelihood ones first, each kind in the order of the domains."""

_LOADER = '''"""Loads a zoo task's documents from the json file beside this one."""

import json
from pathlib import Path

import datasets


def load(file, **_):
    documents = json.loads(Path(__file__).with_name(file).read_text(encoding="utf-8"))
    return {"test": datasets.Dataset.from_list(documents)}
'''

_HEAD = """\
task: {task}
custom_dataset: !function zoo_documents.load
dataset_kwargs:
  file: {task}.json
test_split: test
metadata:
  version: 1.0
"""

_LL = """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: bits_per_byte
    aggregation: bits_per_byte
    higher_is_better: false
"""

_CHOICE = """\
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""

_EXACT = """\
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 4
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""

_N_CHOICES = 4


def make_documents(
    held_out: Mapping[str, Sequence[str]], n: int, rng: np.random.Generator
) -> dict[str, list[dict[str, Any]]]:
    """Lay held-out text out as the documents of the tasks.

    Args:
        held_out: "code" and "prose" documents that training never saw.
        n: Documents per task; fewer where the held-out text does not suffice.
        rng: Source of order, distractors and arithmetic.

    Returns:
        Task to its documents. No text serves two tasks.
    """
    made: dict[str, list[dict[str, Any]]] = {task: [] for task in TASKS}
    for domain in ("code", "prose"):
        texts = list(held_out[domain])
        rng.shuffle(texts)
        n_ll = min(n, len(texts) // 2)
        made[f"zoo_{domain}_ll"] = [{"text": text} for text in texts[:n_ll]]
        split = _split_code if domain == "code" else _split_prose
        pairs = [pair for text in texts[n_ll:] if (pair := split(text)) is not None]
        made[f"zoo_{domain}_choice"] = _choices(pairs[:n], rng)
    made["zoo_math_ll"] = [{"text": t} for t in arithmetic.documents(n, rng, held_out=True)]
    made["zoo_math_exact"] = [
        {"prompt": prompt, "answer": answer} for prompt, answer in arithmetic.questions(n, rng)
    ]
    return made


def write_tasks(documents: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path) -> None:
    """Write YAMLs, json files and their loader.

    Args:
        documents: Task to its documents.
        folder: Where to write; created.
    """
    folder.mkdir(parents=True)
    (folder / "zoo_documents.py").write_text(_LOADER, encoding="utf-8")
    for task, rows in documents.items():
        body = {"ll": _LL, "choice": _CHOICE, "exact": _EXACT}[task.rpartition("_")[2]]
        text = _HEAD.format(task=task) + body
        (folder / f"{task}.yaml").write_text(text, encoding="utf-8")
        lines = ",\n".join(json.dumps(row) for row in rows)
        (folder / f"{task}.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def _split_code(text: str) -> tuple[str, str] | None:
    """Split a code document into its lines but the last good one, and that line."""
    lines = text.rstrip("\n").split("\n")
    for at in range(len(lines) - 1, 2, -1):
        if 20 <= len(lines[at].strip()) <= 70:
            return "\n".join(lines[:at]), "\n" + lines[at]
    return None


def _split_prose(text: str) -> tuple[str, str] | None:
    """Split a prose document after about three quarters of its words."""
    words = text.split(" ")
    at = len(words) * 3 // 4
    return " ".join(words[:at]), " " + " ".join(words[at:])


def _choices(pairs: Sequence[tuple[str, str]], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Add to each real continuation those of three other documents, of about its length."""
    order = sorted(range(len(pairs)), key=lambda i: (len(pairs[i][1].encode()), pairs[i][1]))
    rank = {i: r for r, i in enumerate(order)}
    documents = []
    for i, (context, real) in enumerate(pairs):
        near = order[max(0, rank[i] - 12) : rank[i] + 13]
        others = sorted({pairs[j][1] for j in near} - {real})
        picks = rng.choice(len(others), _N_CHOICES - 1, replace=False)
        choices = [real, *(others[p] for p in picks)]
        shuffled = [int(p) for p in rng.permutation(_N_CHOICES)]
        documents.append(
            {
                "context": context,
                "choices": [choices[p] for p in shuffled],
                "answer": shuffled.index(0),
            }
        )
    return documents
