"""The zoo's lm-eval tasks: ordinary YAMLs, with their documents as json beside them.

For each domain one log-likelihood task (bits per byte) and one accuracy task. The YAMLs load
their json through a three-line function beside them, so that the folder may be moved and read
from anywhere, and nothing enters the cache of `datasets`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
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
    held_out: Mapping[str, Sequence[str]], seen: set[str], n: int, rng: np.random.Generator
) -> dict[str, list[dict[str, Any]]]:
    """Lay held-out text out as the documents of the tasks.

    Args:
        held_out: "code" and "prose" documents that training never saw.
        seen: Runs of arithmetic problems that training saw.
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
        choices = (_choice(*split(text), rng) for text in texts[n_ll:])
        made[f"zoo_{domain}_choice"] = [row for row in choices if row is not None][:n]
    made["zoo_math_ll"] = [{"text": t} for t in arithmetic.documents(n, rng, seen)]
    made["zoo_math_exact"] = [
        {"prompt": prompt, "answer": answer}
        for prompt, answer in arithmetic.questions(n, rng, seen)
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


def _split_code(text: str) -> tuple[str, str]:
    """Split a code document before the last of its lines that has enough words to exchange."""
    lines = text.rstrip("\n").split("\n")
    at = len(lines) - 1
    while at > 3 and len(_exchanges(lines[at])) < _N_CHOICES - 1:
        at -= 1
    return "\n".join(lines[:at]), "\n" + lines[at]


def _split_prose(text: str) -> tuple[str, str]:
    """Split a prose document after about three quarters of its words."""
    words = text.split(" ")
    at = len(words) * 3 // 4
    return " ".join(words[:at]), " " + " ".join(words[at:])


def _exchanges(text: str) -> list[str]:
    """List the copies of a text in which two neighbouring words are exchanged."""
    words = list(re.finditer(r"\w+", text))
    copies = {
        text[: a.start()] + b[0] + text[a.end() : b.start()] + a[0] + text[b.end() :]
        for a, b in pairwise(words)
    }
    return sorted(copies - {text})


def _choice(context: str, real: str, rng: np.random.Generator) -> dict[str, Any] | None:
    """Ask for the real continuation among copies of it with two words exchanged.

    Continuations of other documents do not work as distractors at this size: how likely a line
    is by itself differs by more than what the context says about it, and every model stays near
    chance. The copies have the same bytes and nearly the same tokens.
    """
    copies = _exchanges(real)
    if len(copies) < _N_CHOICES - 1 or not context:
        return None
    picks = rng.choice(len(copies), _N_CHOICES - 1, replace=False)
    choices = [real, *(copies[int(p)] for p in picks)]
    order = [int(p) for p in rng.permutation(_N_CHOICES)]
    return {
        "context": context,
        "choices": [choices[p] for p in order],
        "answer": order.index(0),
    }
