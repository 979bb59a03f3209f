"""What generating answers costs beyond its forward passes, against lm-eval's own loop.

    python benchmarks/generation.py [--documents 100] [--repeats 5] [--only zoo]

One run, interleaved, medians over the repeats; per model:

* ``stock``: seconds of ``HFLM.generate_until`` on the resident model, with as many prompts per
  batch as our loop takes;
* ``own``: seconds of :class:`evomerge.evaluators.generation.Generator`, cutting the answers at
  their stops included;
* ``forward``: seconds of ``own`` that passed inside the model's forward pass.

``overhead_over_forward`` is own / forward, ``speedup_over_stock`` stock / own. The models: the
math expert of the zoo on ``zoo_math_exact`` as it is and with five examples that all prompts
share, and a Llama shape of 110M parameters with random weights and a vocabulary of 32k on prompts
of about 300 tokens, all different and with 250 of them shared. Answers are compared, too.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from lm_eval.api.instance import Instance

from evomerge.evaluators.scoring import LiveModel
from evomerge.evaluators.tasks import lean

STOCK_BATCH = 64

CLOCK = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
"""With one thread the processor's time, which a busy machine does not disturb."""


def measure(
    model: Any, tokenizer: Any, prompts: list[str], kwargs: dict[str, Any], repeats: int
) -> dict[str, Any]:
    """Both loops on the same requests."""
    asked = [
        Instance("generate_until", {}, (p, dict(kwargs)), 0, ("bench", i, 1))
        for i, p in enumerate(prompts)
    ]
    live = LiveModel(model, tokenizer, "auto", None)
    encoded = live.encode(asked)
    (group,) = encoded.generations.groups
    live.lm.batch_size_per_gpu = min(STOCK_BATCH, len(group.batches[0]))
    inside = _forward_clock(model)
    seconds: dict[str, list[float]] = {"own": [], "stock": [], "forward": []}
    for _ in range(repeats):
        inside.clear()
        seconds["own"].append(_timed(lambda: live.answer(model, encoded))[0])
        seconds["forward"].append(sum(inside))
        passes = len(inside)
        stock_seconds, texts = _timed(lambda: live.lm.generate_until(asked, disable_tqdm=True))
        seconds["stock"].append(stock_seconds)
    own, forward, stock = (seconds[k] for k in ("own", "forward", "stock"))
    return {
        "prompts": len(group.prompts),
        "tokens": len(group.prompts[0]),
        "shared": group.n_shared,
        "rows": len(group.batches[0]),
        "forward_passes": passes,
        "equal": sum(i.resps[0] == text for i, text in zip(asked, texts, strict=True)),
        **{name: round(statistics.median(values), 4) for name, values in seconds.items()},
        "overhead_over_forward": _ratio(own, forward),
        "speedup_over_stock": _ratio(stock, own),
    }


def _ratio(a: list[float], b: list[float]) -> float:
    return round(statistics.median(x / y for x, y in zip(a, b, strict=True)), 3)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    with lean(), torch.inference_mode():
        start = CLOCK()
        result = work()
        return CLOCK() - start, result


def _forward_clock(model: Any) -> list[float]:
    """Seconds of every forward pass from now on."""
    seconds: list[float] = []
    begun: list[float] = []
    model.register_forward_pre_hook(lambda *_: begun.append(CLOCK()))
    model.register_forward_hook(lambda *_: seconds.append(CLOCK() - begun.pop()))
    return seconds


def zoo(n: int, repeats: int) -> dict[str, Any]:
    """The zoo's math expert."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from evomerge.zoo.build import build_zoo

    folder = build_zoo()
    model = AutoModelForCausalLM.from_pretrained(folder / "math", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "math")
    rows = json.loads((folder / "tasks" / "zoo_math_exact.json").read_text())
    prompts = [row["prompt"] for row in rows[:n]]
    shots = "".join(f"{row['prompt']}{row['answer']}\n" for row in rows[-5:])
    kwargs = {"until": ["\n"], "max_gen_toks": 4, "do_sample": False}
    return {
        "zoo": measure(model, tokenizer, prompts, kwargs, repeats),
        "zoo_5_shots": measure(model, tokenizer, [shots + p for p in prompts], kwargs, repeats),
    }


def llama(n: int, repeats: int) -> dict[str, Any]:
    """110M random parameters, 32k words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["</s>", *(f"w{i}" for i in range(31_999))]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="</s>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32_000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12,
            num_attention_heads=12, num_key_value_heads=12, max_position_embeddings=2048,
            bos_token_id=None, eos_token_id=0, initializer_range=0.1, tie_word_embeddings=True,
        )
    ).eval()  # fmt: skip
    rng = random.Random(0)

    def text(n_words: int) -> str:
        return " ".join(rng.choices(words[1:], k=n_words))

    kwargs = {"until": ["w1\n", "w77 "], "max_gen_toks": 32, "do_sample": False}
    shots = text(250)
    return {
        "llama": measure(
            model, tokenizer, [text(rng.randint(270, 310)) for _ in range(n)], kwargs, repeats
        ),
        "llama_shared": measure(
            model, tokenizer, [f"{shots} {text(rng.randint(20, 60))}" for _ in range(n)],
            kwargs, repeats,
        ),
    }  # fmt: skip


def main() -> None:
    """Prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--documents", type=int, default=100, help="of the zoo's")
    parser.add_argument("--prompts", type=int, default=16, help="of the 110M model's")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=["zoo", "llama"])
    args = parser.parse_args()
    figures: dict[str, Any] = {"benchmark": "generation", "threads": torch.get_num_threads()}
    if args.only != "llama":
        figures |= zoo(args.documents, args.repeats)
    if args.only != "zoo":
        figures |= llama(args.prompts, max(1, args.repeats - 2))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
