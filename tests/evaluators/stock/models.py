"""Tiny random models of several kinds, each with a tokenizer whose merges cross word borders."""

from __future__ import annotations

import functools
import json
import random
from typing import Any

import torch

from .configurations import WORDS, text

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
SIZE = {"vocab_size": 420, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
}


def make_tokenizer(*, bos: bool, padding_side: str) -> Any:
    """Byte-level BPE that splits before spaces only: ":" and "green" may merge when they meet.

    Args:
        bos: Whether it puts a beginning-of-text token first; without, it has none at all.
        padding_side: Where it pads. Without ``bos`` it has no padding token either.
    """
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer.from_str(_bpe())
    special = {"eos_token": EOS}
    if bos:
        raw.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, 0)]
        )
        special |= {"bos_token": BOS, "pad_token": PAD}
    return PreTrainedTokenizerFast(tokenizer_object=raw, padding_side=padding_side, **special)


@functools.cache
def _bpe() -> str:
    """The trained tokenizer as JSON."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    rng = random.Random(0)
    corpus = [
        f"Question: {text(rng, 3, 12)}?\nAnswer:{rng.choice(['', ' '])}{text(rng, 1, 4)}"
        for _ in range(300)
    ]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(" ", "merged_with_next"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=SIZE["vocab_size"] - 26,
            special_tokens=[BOS, EOS, PAD],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            max_token_length=12,
            show_progress=False,
        ),
    )
    trained = json.loads(raw.to_str())
    for letter in sorted({word[0] for word in WORDS}):  # what "Answer:" and "green" merge into
        trained["model"]["vocab"][f":{letter}"] = len(trained["model"]["vocab"])
        trained["model"]["merges"].insert(0, [":", letter])
    return json.dumps(trained)


def llama(**overrides: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SIZE | SMALL | overrides))


def gpt2() -> Any:
    """Learned positions, biases, tied embeddings."""
    from transformers import GPT2Config, GPT2LMHeadModel

    size = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
    return GPT2LMHeadModel(GPT2Config(**SIZE | size, initializer_range=0.15))


def gemma2() -> Any:
    """Tied embeddings, soft-capped logits, sliding windows in every other layer."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    own = {"head_dim": 8, "sliding_window": 48, "final_logit_softcapping": 5.0}
    return Gemma2ForCausalLM(Gemma2Config(**SIZE | SMALL | own))


MODELS = {
    "llama": (llama, {"bos": True, "padding_side": "right"}),
    "gpt2": (gpt2, {"bos": False, "padding_side": "right"}),
    "gemma2": (gemma2, {"bos": True, "padding_side": "left"}),
    "short": (lambda: llama(max_position_embeddings=72), {"bos": False, "padding_side": "left"}),
}
"""Name to a function that makes the model, and its tokenizer's settings."""


def make(name: str, device: torch.device) -> tuple[Any, Any]:
    """A model of :data:`MODELS` and its tokenizer, the same at every call."""
    build, settings = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build().float().eval().to(device)
    return model, make_tokenizer(**settings)
