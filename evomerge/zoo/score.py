"""Bits per byte of documents: what the zoo's manifest says of its models.

The same number as lm-eval's `bits_per_byte` on the zoo's log-likelihood tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

_BATCH = 32


def bits_per_byte(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, documents: Sequence[str]
) -> np.ndarray:
    """Score documents, each after `bos`.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        documents: Texts that fit the model's context.

    Returns:
        `(n,)` bits per byte, lower is better.
    """
    import torch

    ids = [[tokenizer.bos_token_id, *tokenizer.encode(d)] for d in documents]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    bits = np.zeros(len(ids))
    for at in range(0, len(order), _BATCH):
        picks = order[at : at + _BATCH]
        width = max(len(ids[i]) for i in picks)
        batch = torch.full((len(picks), width), -100)
        for row, i in enumerate(picks):
            batch[row, : len(ids[i])] = torch.tensor(ids[i])
        with torch.inference_mode():
            # Padding stands on the right, so causal attention needs no mask.
            logits = model(input_ids=batch[:, :-1].clamp_min(0), use_cache=False).logits
            losses = torch.nn.functional.cross_entropy(
                logits.transpose(1, 2), batch[:, 1:], reduction="none"
            )
        bits[picks] = losses.sum(1).double().numpy() / math.log(2)
    n_bytes = np.array([len(d.encode()) for d in documents])
    return np.asarray(bits / n_bytes)
