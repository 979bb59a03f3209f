"""Generated answers are those of lm-eval's HFLM, whoever decodes them."""

from __future__ import annotations

import random

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from evomerge.errors import TaskError
from evomerge.evaluators.scoring import LiveModel
from evomerge.evaluators.tasks import lean
from tests.models import config
from tests.models import tokenizer as bpe

from .toys import make_model, make_t5

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "merge", "experts", "score", "12"]
DECODED_HERE = ("llama", "qwen2", "gpt2", "mistral", "gemma2", "gemma3", "gpt_neox", "qwen3_moe")


def prompts(n: int, seed: int = 0, longest: int = 9, prefix: str = "") -> list[str]:
    rng = random.Random(seed)
    made = [" ".join(rng.choices(WORDS, k=rng.randint(1, longest))) for _ in range(n)]
    return [prefix + text for text in made]


def requests(texts, repeats: int = 1, task: str = "t", **kwargs) -> list[Instance]:
    kwargs = {"until": ["\n"], "max_gen_toks": 12, "do_sample": False} | kwargs
    return [
        Instance("generate_until", {}, (text, dict(kwargs)), 0, (task, i, repeats))
        for i, text in enumerate(texts)
    ]


def ours(model, tokenizer, asked, batch_size="auto", max_length=None):
    """Answers and what was encoded."""
    with lean(), torch.inference_mode():
        live = LiveModel(model, tokenizer, batch_size, max_length)
        encoded = live.encode(asked)
        live.answer(model, encoded)
    return [i.resps for i in asked], encoded.generations


def stock(model, tokenizer, asked, batch_size=1, max_length=None):
    with lean():
        lm = HFLM(
            pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=max_length
        )
        return [[text] for text in lm.generate_until(asked, disable_tqdm=True)]


def make(arch: str, device, **changes):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    settings = config(arch)
    for name, value in changes.items():
        setattr(settings, name, value)
    model = AutoModelForCausalLM.from_config(settings).float().eval().to(device)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, device=device) * 0.1)
    return model


@pytest.mark.parametrize("arch", DECODED_HERE)
def test_architectures(arch, device):
    model = make(
        arch, device, **({"sliding_window": 8} if "gemma" in arch or arch == "mistral" else {})
    )
    asked = requests(prompts(7), until=["o", "e th", "\n\n"])
    got, encoded = ours(model, bpe(), asked)
    assert encoded.groups
    assert got == stock(model, bpe(), asked)
    assert len({text for (text,) in got}) > 3
