"""The tokenizer, the model and the training loop of the zoo."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from evomerge.zoo.sizes import DOMAINS, Size

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT = 256
_PAD, _BOS, _EOS = "<pad>", "<s>", "</s>"


def train_tokenizer(texts: Sequence[str], size: Size) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; digits are single tokens.

    It adds no special tokens by itself: lm-eval puts `bos` before a rolling document.

    Args:
        texts: The training documents.
        size: Gives the number of tokens.

    Returns:
        The tokenizer, with `bos`, `eos` and `pad` set.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size.vocabulary,
        special_tokens=[_PAD, _BOS, _EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        bos_token=_BOS,
        eos_token=_EOS,
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def new_model(size: Size, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Build an untrained model; torch's global generator gives its weights.

    Args:
        size: The settings.
        tokenizer: Gives the vocabulary and the special tokens.

    Returns:
        A Llama in fp32 with tied embeddings.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size.vocabulary,
            hidden_size=size.hidden,
            intermediate_size=size.intermediate,
            num_hidden_layers=size.layers,
            num_attention_heads=size.hidden // 32,
            num_key_value_heads=size.hidden // 32,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


class Rows:
    """A domain's training tokens, from which rows are drawn.

    Args:
        documents: The training documents.
        tokenizer: Encodes them.
        row: Tokens that a row predicts; it carries one more.
        rng: Source of the draws.
    """

    def __init__(
        self,
        documents: Sequence[str],
        tokenizer: PreTrainedTokenizerFast,
        row: int,
        rng: np.random.Generator,
    ) -> None:
        encoded = [e.ids for e in tokenizer.backend_tokenizer.encode_batch(list(documents))]
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        stream = [token for ids in encoded for token in (bos, *ids, eos)]
        lengths = np.array([len(ids) + 2 for ids in encoded])
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        self._stream = np.array(stream, dtype=np.int64)
        self._last = len(stream) - row - 1
        self._starts = starts[starts <= self._last]
        self._offsets = np.arange(row + 1)
        self._rng = rng

    def draw(self, n: int) -> np.ndarray:
        """Draw n rows, `(n, row + 1)`: half start a document, half start anywhere."""
        at = self._starts[self._rng.integers(len(self._starts), size=n)]
        anywhere = self._rng.integers(self._last + 1, size=n)
        at = np.where(self._rng.random(n) < 0.5, at, anywhere)
        return self._stream[at[:, None] + self._offsets]


def train(
    model: LlamaForCausalLM,
    rows: Mapping[str, Rows],
    shares: Sequence[float],
    *,
    batch: int,
    steps: int,
    rate: float,
    rng: np.random.Generator,
    on_step: Callable[[float], None],
    parts: int = 1,
) -> float:
    """Train a model in place: AdamW, short warm-up, cosine decay to a twentieth.

    Every torch operation runs on one thread: at this size OpenMP's barriers cost more than they
    give, and on a machine that is busy with something else twenty times more. A second core is
    used by giving each half of the batch to a Python thread of its own (`parts=2`), or by
    training two models at once; either way the result does not depend on the machine's cores.

    Args:
        model: The model.
        rows: Domain to its rows.
        shares: Share of the rows that each domain gives, in the order of `DOMAINS`.
        batch: Rows in a batch.
        steps: Optimizer steps.
        rate: Peak learning rate.
        rng: Source of each batch's domains.
        on_step: Called with the loss after every step; an exception from it ends the training.
        parts: Number of threads, each with an equal part of the batch.

    Returns:
        Mean training loss of the last tenth, in nats per token.
    """
    import torch

    model.train(mode=True)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.05},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=rate,
        betas=(0.9, 0.95),
    )

    def gradients(part: torch.Tensor) -> tuple[float, tuple[torch.Tensor, ...]]:
        torch.set_num_threads(1)
        logits = model(input_ids=part[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten())
        return float(loss.detach()), torch.autograd.grad(loss, parameters)

    warm = max(1, steps // 20)
    losses = []
    with ThreadPoolExecutor(parts) as threads:
        for step in range(steps):
            decay = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps))
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / warm) * decay
            counts = rng.multinomial(batch, shares)
            drawn = [rows[name].draw(int(n)) for name, n in zip(DOMAINS, counts, strict=True)]
            tokens = torch.from_numpy(rng.permutation(np.concatenate(drawn)))
            results = list(threads.map(gradients, tokens.chunk(parts)))
            for i, parameter in enumerate(parameters):
                parameter.grad = torch.stack([grads[i] for _, grads in results]).mean(0)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            losses.append(float(np.mean([loss for loss, _ in results])))
            on_step(losses[-1])
    model.train(mode=False)
    return float(np.mean(losses[-max(1, steps // 10) :]))
