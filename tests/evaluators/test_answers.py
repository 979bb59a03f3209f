"""The collapse guard: which answers look like a broken model's, whatever the task."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from evomerge.errors import ConfigError
from evomerge.evaluators.answers import is_broken
from evomerge.trial import Objective

from .toys import build

GENERATE = Objective("broken", "toy_generate", "collapse", "strict", direction="minimize")
CHOICE = Objective("off", "toy_choice", "collapse", direction="minimize")
TEXT = Objective("lost", "toy_text", "collapse", direction="minimize")
LIKELY = Objective("acc", "toy_choice", "acc")

SOUND = [
    "7",
    "yes yes yes",
    "A",
    "1, 1, 1, 1, 1, 1, 1, 1, 2, 3",
    "----------\n| a | b |\n----------",
    "x = 0\nfor i in range(10):\n    for j in range(10):\n        x += i * j\n    print(x)\n",
    "Step 1: we add 3 to 4 and get 7. Step 2: we add 7 to 5 and get 12. So the answer is 12.",
    "Das Ergebnis ist 12 — genau zwölf. 答えは十二です。 Ответ: двенадцать. 🎉",
    "naïve\tcafé\r\n\N{ZERO WIDTH JOINER}",
]
BROKEN = [
    "",
    " \n\t ",
    "the " * 20,
    "the answer is 12. " * 12,
    "A sound beginning that says something. " + "No, wait, let me think again. " * 15,
    "\n".join(f"Step {i}: no, wait, let me think about it again." for i in range(25)),
    (
        "We take the sum of all the terms, which is what the question asks, and so we find it. "
        * 12
    ),
    "0" * 60,
    "ab\N{REPLACEMENT CHARACTER}cd\N{REPLACEMENT CHARACTER}",
    "\x00\x01\x02\x03 ok",
]


@pytest.mark.parametrize("text", SOUND)
def test_sound(text):
    assert not is_broken(text)


@pytest.mark.parametrize("text", BROKEN)
def test_broken(text):
    assert is_broken(text)


def test_ordinary_text_is_not_a_loop():
    from pathlib import Path

    import evomerge

    files = sorted(Path(evomerge.__file__).parent.rglob("*.py"))
    pieces = [file.read_text()[a : a + 900] for file in files for a in range(0, 4000, 900)]
    flagged = [piece for piece in pieces if piece.strip() and is_broken(piece)]
    assert len(pieces) > 500
    assert len(flagged) <= 0.005 * len(pieces)


def test_every_kind_of_task_has_it(task_folder, model, tokenizer):
    evaluator = build(task_folder, [GENERATE, CHOICE, TEXT, LIKELY])
    evaluator.prepare(model, tokenizer)
    scores = evaluator.evaluate(model, None, "search")
    instances = evaluator._built["search"].instances
    want = [float(is_broken(i.resps[0])) for i in instances["toy_generate"]]
    assert scores.per_example["broken"].tolist() == [-v for v in want]
    assert scores.values["broken"] == pytest.approx(-np.mean(want))
    best: dict[int, float] = {}
    for i in instances["toy_choice"]:  # one token per byte
        rate = i.resps[0][0] / len(i.args[1].encode())
        best[i.doc_id] = max(rate, best.get(i.doc_id, -math.inf))
    want = [float(best[k] < -math.log(258)) for k in sorted(best)]
    assert scores.per_example["off"].tolist() == [-v for v in want]
    want = [
        float(i.resps[0] / len(i.args[0].encode()) < -math.log(258)) for i in instances["toy_text"]
    ]
    assert scores.per_example["lost"].tolist() == [-v for v in want]
    assert not math.isnan(scores.stderr["off"])


def test_it_tells_a_model_that_knows_nothing_from_one_that_is_wrong(task_folder, model, tokenizer):
    evaluator = build(task_folder, [CHOICE, TEXT])
    evaluator.prepare(model, tokenizer)
    with torch.no_grad():
        model.lm_head.weight.mul_(1e-3)  # uniform but for a trace: about half below, none far off
        assert evaluator.evaluate(model, None, "search").values["off"] > -1
        model.lm_head.weight.mul_(1e5)  # certain of what is wrong
    assert evaluator.evaluate(model, None, "search").values == {"off": -1.0, "lost": -1.0}


def test_it_is_to_be_minimised(task_folder):
    with pytest.raises(ConfigError, match="direction: minimize"):
        build(task_folder, [Objective("off", "toy_choice", "collapse")])
