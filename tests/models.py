"""Tiny random checkpoints to try things with: a base and experts = base + small noise.

As a script: ``python -m tests.models OUT --arch qwen2`` writes OUT/base, OUT/expert_a, ... Each is
a complete Hugging Face folder (safetensors, configuration, byte-level BPE tokenizer). The models
know nothing; they are for tests of the machinery, not of quality (for that, see ``evomerge zoo``).
"""

from __future__ import annotations

import argparse
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

ARCHS = (
    "llama", "qwen2", "gpt2", "mistral", "qwen3", "gemma2", "gemma3", "phi", "phi3", "gpt_neox",
    "mixtral", "qwen2_moe", "qwen3_moe", "t5",
)  # fmt: skip
VOCAB = 300
EOS = "<|endoftext|>"
_TEXT = (
    "the quick brown fox jumps over the lazy dog",
    "merge the experts, score the merge, keep the best of them",
    "def add(a, b): return a + b  # 12 + 30 = 42",
    "what is the answer? the answer is the other one",
    "un modèle, deux modèles; ein Modell, zwei Modelle",
)


@functools.cache
def tokenizer() -> Any:
    """A byte-level BPE tokenizer of at most :data:`VOCAB` tokens."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        _TEXT,
        trainers.BpeTrainer(
            vocab_size=VOCAB,
            special_tokens=[EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=EOS, bos_token=EOS, pad_token=EOS, model_max_length=256
    )


def config(
    arch: str, *, hidden: int = 32, layers: int = 4, tie: bool = True, vocab: int = VOCAB
) -> Any:
    """A transformers configuration of one of :data:`ARCHS`."""
    import transformers as t

    if arch not in ARCHS:
        raise ValueError(f"arch must be one of {ARCHS}, got {arch!r}")
    tokens = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    common = {"vocab_size": vocab, "tie_word_embeddings": tie, **tokens}
    if arch == "t5":
        return t.T5Config(
            d_model=hidden,
            d_kv=8,
            d_ff=2 * hidden,
            num_layers=layers,
            num_heads=4,
            decoder_start_token_id=0,
            **common,
        )
    if arch == "gpt2":
        return t.GPT2Config(n_embd=hidden, n_layer=layers, n_head=4, n_positions=256, **common)
    common |= {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    }
    few = {"num_key_value_heads": 2}
    mixture = few | {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": hidden}
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "llama": (t.LlamaConfig, few),
        "mistral": (t.MistralConfig, few),
        "qwen2": (t.Qwen2Config, few),
        "qwen3": (t.Qwen3Config, few | {"head_dim": 8}),
        "gemma2": (t.Gemma2Config, few | {"head_dim": 8}),
        "gemma3": (t.Gemma3TextConfig, few | {"head_dim": 8}),
        "phi": (t.PhiConfig, {}),
        "phi3": (t.Phi3Config, few),
        "gpt_neox": (t.GPTNeoXConfig, {}),
        "mixtral": (t.MixtralConfig, few | {"num_local_experts": 3}),
        "qwen2_moe": (t.Qwen2MoeConfig, mixture | {"shared_expert_intermediate_size": hidden}),
        "qwen3_moe": (t.Qwen3MoeConfig, mixture | {"head_dim": 8}),
    }
    kind, more = kinds[arch]
    return kind(**common, **more)


def build_family(
    out: Path,
    arch: str = "llama",
    n_experts: int = 2,
    seed: int = 0,
    hidden: int = 32,
    layers: int = 4,
    vocab: int = VOCAB,
    tie: bool = True,
    dtype: str = "float32",
    noise: float = 0.02,
) -> dict[str, Path]:
    """Writes a base and its experts below ``out``; what is there already is kept.

    Args:
        out: Folder; created.
        arch: One of :data:`ARCHS`.
        n_experts: Experts: expert_a, expert_b, ...
        seed: Of the weights; the same seed gives the same files.
        hidden: Width, a multiple of 8.
        layers: Number of transformer layers.
        vocab: Rows of the embedding, at least :data:`VOCAB`.
        tie: Whether embedding and head are one tensor.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        noise: Standard deviation of expert - base.

    Returns:
        Model name (``"base"``, ``"expert_a"``, ...) to its folder.
    """
    names = ["base", *(f"expert_{chr(ord('a') + i)}" for i in range(n_experts))]
    settings = [arch, n_experts, seed, hidden, layers, vocab, tie, dtype, noise]
    stamp = json.dumps(settings)
    note = out / "family.json"
    folders = {name: out / name for name in names}
    if note.exists() and note.read_text() == stamp:
        return folders
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    auto = AutoModelForSeq2SeqLM if arch == "t5" else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(
            config(arch, hidden=hidden, layers=layers, tie=tie, vocab=vocab)
        ).float()
    random = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for p in model.parameters():  # no tensor is all ones or zeros: a merge of it shows
            p.add_(torch.randn(p.shape, generator=random) * 0.05)
        start = {n: p.clone() for n, p in model.named_parameters()}
        for name, folder in folders.items():
            for n, p in model.named_parameters():
                p.copy_(start[n])
                if name != "base":
                    p.add_(torch.randn(p.shape, generator=random) * noise)
            folder.mkdir(parents=True, exist_ok=True)
            _save(model, folder, dtype)
    note.write_text(stamp)
    return folders


def _save(model: Any, folder: Path, dtype: str) -> None:
    import copy

    from transformers.utils import logging

    logging.disable_progress_bar()
    saved = copy.deepcopy(model).to(getattr(torch, dtype))
    saved.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


@functools.cache
def family(
    arch: str = "llama", tie: bool = True, dtype: str = "float32", n_experts: int = 2
) -> dict[str, Path]:
    """:func:`build_family` in a temporary folder, once per test session. Do not write to it."""
    return build_family(
        Path(_session_folder()) / f"{arch}-{'tied' if tie else 'untied'}-{dtype}-{n_experts}",
        arch,
        n_experts,
        tie=tie,
        dtype=dtype,
    )


@functools.cache
def _session_folder() -> str:
    import atexit
    import shutil

    folder = tempfile.mkdtemp(prefix="evomerge-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def main() -> None:
    """Builds a family from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--arch", choices=ARCHS, default="llama")
    parser.add_argument("--experts", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--untied", action="store_true")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    a = parser.parse_args()
    folders = build_family(
        a.out, a.arch, a.experts, a.seed, a.hidden, a.layers, tie=not a.untied, dtype=a.dtype
    )
    for name, folder in folders.items():
        print(f"{name}: {folder}")


if __name__ == "__main__":
    main()
