"""What scoring a candidate costs, against the bare forward passes and against the stock harness.

    python benchmarks/scoring.py [--models zoo,100m] [--documents 50] [--repeats 5] [--threads 1]

For a zoo model (4 layers, hidden 128, 1,024 tokens) and for a Llama shape of 106M parameters with
a vocabulary of 32,000 and random weights; per task type side by side in one run, medians of the
CPU seconds of the process (the machine may be shared):

* ``overhead_over_forward``: evaluate() of the resident scorer in units of the forward passes of
  its own prebuilt batches (same tokens, same sharing, masks built, logits only where they are
  needed, nothing done with them), minus 1.
* ``speedup_over_simple_evaluate``: `lm_eval.simple_evaluate` on the same resident model, the same
  documents, with its tasks indexed and its model wrapped once, in units of evaluate(). ``_lean``:
  without the subprocesses with which it describes the machine, a second per call.
* ``sharing``: input tokens of the requests, each one padded to none, in units of those of our
  batches, padding included.

Tasks, 4 choices each: ``choice`` without examples, ``choice_5shot`` with examples drawn per
document (lm-eval's default), ``choice_5shot_first`` with the same five for all; ``last`` (one
log-likelihood per document) and ``rolling`` (whole texts). `benchmarks/generation.py` has
generated answers.

On two cores of an AMD EPYC (Zen 4), one thread, idle machine; 50 documents and 15 repeats for the
zoo, 16 and 6 for the shape's first row, 20 and 3 for its second, which is older than the short way
of the last feed-forward block, as are those with a star (overhead, times faster than
`simple_evaluate`, lean, sharing). Single runs differ by 2 to 5 points of overhead, and by a
tenth of a speed-up::

    zoo   choice               9%   5.7   2.8    1.9
    zoo   choice_5shot         3%   6.5   5.3    3.6
    zoo   choice_5shot_first   4%   8.2   6.9   13.5
    zoo   last                 3%   9.5   3.6    0.9
    zoo   rolling              9%   9.4   4.2
    100m  choice *             0%   3.8   3.6    3.0
    100m  choice_5shot        -3%   5.5   5.3    4.0
    100m  choice_5shot_first   3%  16.1  17.3   15.4
    100m  last *               2%   1.6   1.3    1.0
    100m  rolling *           -8%   1.4   1.0

A zoo candidate of 50 short texts takes 50 ms. Of what it costs beside the forward pass, about 1 ms
is normalising the logits of `last` and 2 those of `rolling`; lm-eval's own metrics take 1.3 ms in
`rolling`; the rest is some Python on cold caches.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from evomerge.evaluators.lm_eval import LmEval
from evomerge.trial import Objective

CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_target": "label",
    "doc_to_choice": "choices",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
TASKS: dict[str, dict[str, Any]] = {
    "choice": CHOICE,
    "choice_5shot": CHOICE | {"num_fewshot": 5},
    "choice_5shot_first": CHOICE | {"num_fewshot": 5, "fewshot_config": {"sampler": "first_n"}},
    "last": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{question}}",
        "doc_to_target": " {{choices[0]}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}} {{choices[0]}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
}
METRICS = {"rolling": ("bits_per_byte", "minimize")}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default="zoo,100m")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--documents", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["TQDM_DISABLE"] = "1"
    logging.disable(logging.WARNING)
    figures: dict[str, Any] = {"documents": options.documents, "threads": options.threads}
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.models.split(","):
            model, tokenizer, words = {"zoo": zoo, "100m": shape}[kind]()
            tasks = Path(folder) / kind
            write_tasks(tasks, words, options.documents)
            for name in options.tasks.split(","):
                found = measure(model, tokenizer, tasks, name, options.repeats)
                print(kind, name, json.dumps(found), flush=True)
                figures |= {f"{key}_{kind}_{name}": value for key, value in found.items()}
    print(json.dumps(figures))


def zoo() -> tuple[Any, Any, list[str]]:
    """The zoo's base and words of its own texts."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from evomerge.zoo.build import build_zoo

    folder = build_zoo()
    texts = json.loads((folder / "tasks" / "zoo_prose_ll.json").read_text())
    words = sorted({w for row in texts for w in row["text"].split()})
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder / "base"), words


def shape() -> tuple[Any, Any, list[str]]:
    """A Llama shape of 106M parameters with random weights, and a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = [f"w{i}" for i in range(31_998)]
    vocabulary = {w: i for i, w in enumerate(["<unk>", "</s>", *words])}
    raw = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="</s>", eos_token="</s>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=768,
        intermediate_size=2176,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=6,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).float().eval(), tokenizer, words


def write_tasks(folder: Path, words: list[str], n: int) -> None:
    """Questions of 40 words with 4 choices of 6; fewer for the zoo, whose window is 256 tokens."""
    folder.mkdir()
    rng = random.Random(0)
    short = len(words) > 30_000  # one token per word
    n_question, n_choice = (40, 6) if short else (5, 2)
    for split, size in (("test", n), ("train", 20)):
        rows = [
            {
                "question": " ".join(rng.choices(words, k=n_question)),
                "choices": [" ".join(rng.choices(words, k=n_choice)) for _ in range(4)],
                "label": rng.randrange(4),
            }
            for _ in range(size)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for name, config in TASKS.items():
        body = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {s: str(folder / f"{s}.jsonl") for s in ("test", "train")}
            },
            "test_split": "test",
            "training_split": "train",
            "fewshot_split": "train",
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(body | config, sort_keys=False))


def measure(model: Any, tokenizer: Any, tasks: Path, name: str, repeats: int) -> dict[str, Any]:
    """The three side by side."""
    metric, direction = METRICS.get(name, ("acc", "maximize"))
    ours = LmEval(
        [Objective("o", name, metric, direction=direction)],  # type: ignore[arg-type]
        include_path=tasks,
        splits={"search": None, "select": 0, "test": 0},
    )
    ours.prepare(model, tokenizer)
    value = ours.evaluate(model, None, "search").values["o"]  # type: ignore[arg-type]
    requests = ours._built["search"].requests
    scorer = ours._live._scorer  # type: ignore[union-attr]
    passes = [scorer.inputs(model, batch) for batch in requests.batches]

    def bare() -> None:
        with torch.inference_mode(), scorer.hooked(model):
            for batch, given in zip(requests.batches, passes, strict=True):
                scorer.logits(model, batch, given)

    stock, lean = stock_harness(model, tokenizer, tasks, name, ours.samples("search"))
    ran: dict[str, list[float]] = {}
    for _ in range(repeats):
        for key, run in (
            ("ours", lambda: ours.evaluate(model, None, "search")),  # type: ignore[arg-type]
            ("bare", bare),
        ):
            ran.setdefault(key, []).append(seconds(run)[0])
    theirs: Any = None
    for key, run in (("stock", stock), ("lean", lean)):
        for _ in range(max(1, repeats // 3)):
            taken, theirs = seconds(run)
            ran.setdefault(key, []).append(taken)
    theirs = theirs[name][f"{metric},none"]
    assert abs(abs(value) - theirs) < 1e-4 * max(1, abs(theirs)), (value, theirs)
    medians = {key: statistics.median(times) for key, times in ran.items()}
    plain = 0
    if name != "rolling":
        encoded = ours._live.lm.loglikelihood(requests.likelihoods)  # type: ignore[union-attr]
        plain = sum(len(a) + len(b) - 1 for _, a, b in encoded)
    return {
        "overhead_over_forward": round(medians["ours"] / medians["bare"] - 1, 3),
        "speedup_over_simple_evaluate": round(medians["stock"] / medians["ours"], 1),
        "speedup_over_simple_evaluate_lean": round(medians["lean"] / medians["ours"], 1),
        "sharing": round(plain / sum(b.tokens.numel() for b in requests.batches), 2) or None,
        "seconds": round(medians["ours"], 4),
    }


def stock_harness(
    model: Any, tokenizer: Any, tasks: Path, name: str, samples: dict[str, list[int]]
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """`simple_evaluate` per candidate as it is, and without its description of the machine."""
    import lm_eval.evaluator as harness
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=32)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    describe = harness.add_env_info

    def run() -> Any:
        return harness.simple_evaluate(
            model=lm, tasks=[name], samples=samples, task_manager=manager, bootstrap_iters=0
        )["results"]

    def lean() -> Any:
        harness.add_env_info = lambda _: None
        try:
            return run()
        finally:
            harness.add_env_info = describe

    return run, lean


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process and its children; wall-clock where several threads compute.

    Returns:
        The seconds, and what ``run`` returned.
    """

    def clocks() -> float:
        if torch.get_num_threads() > 1:
            return time.perf_counter()
        children = os.times()
        return time.process_time() + children.children_user + children.children_system

    start = clocks()
    result = run()
    return clocks() - start, result


if __name__ == "__main__":
    main()
