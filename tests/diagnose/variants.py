"""Real tiny checkpoints with one thing wrong, each made from a family of ``tests.models``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
HEADS, SIZE = 4, 8  # of tests.models; the Llamas have half as many key-value heads


def copy(source: Path, out: Path) -> Path:
    return Path(shutil.copytree(source, out))


def edit(folder: Path, change: Callable[[Tensors], Any]) -> Path:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file({k: t.contiguous() for k, t in tensors.items()}, file, metadata={"format": "pt"})
    return folder


def logits(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.arange(3, 40)[None]).logits


def add_tokens(source: Path, out: Path, n: int, rows: int) -> Path:
    """``n`` more tokens, ``rows`` more rows of the embedding, as transformers saves them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens([f"<|new_{i}|>" for i in range(n)])
    if rows:
        model.resize_token_embeddings(model.config.vocab_size + rows)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def edit_config(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


REWRITABLE = ("llama", "mistral", "qwen2", "gemma2", "gpt2", "mixtral", "qwen2_moe")
"""Whose attention :func:`rewrite` knows whole: no norms on queries, full rotary positions."""


def rewrite(folder: Path, arch: str, pair: str, kind: str, seed: int = 0) -> Path:
    """Transforms VO or QK factors of every layer so that the outputs stay what they are.

    Args:
        folder: The checkpoint, changed in place.
        arch: One of :data:`REWRITABLE`.
        pair: ``VO`` or ``QK``.
        kind: ``scale`` (by 1/8 or 8 per head) or ``turn`` (any invertible matrix; for rotary
            queries and keys a turn and scaling of each rotated pair).
        seed: Of the matrices.
    """
    random = torch.Generator().manual_seed(seed)

    def matrix(rotary: bool) -> torch.Tensor:
        if kind == "scale":
            return torch.eye(SIZE, dtype=torch.float64) * 8.0
        if rotary:
            angle = torch.rand(SIZE // 2, generator=random, dtype=torch.float64) * 6.3
            length = 0.5 + torch.rand(SIZE // 2, generator=random, dtype=torch.float64)
            c, s = torch.diag(length * angle.cos()), torch.diag(length * angle.sin())
            return torch.cat([torch.cat([c, -s], 1), torch.cat([s, c], 1)])
        return torch.eye(SIZE, dtype=torch.float64) * 2 + torch.randn(
            (SIZE, SIZE), generator=random, dtype=torch.float64
        )

    def llama(tensors: Tensors) -> None:
        layers = sorted({n.split("self_attn.")[0] for n in tensors if "self_attn." in n})
        for prefix in (p + "self_attn." for p in layers):
            group = HEADS // (len(tensors[prefix + "k_proj.weight"]) // SIZE)
            for g in range(HEADS // group):
                m = matrix(rotary=pair == "QK")
                kv, q = slice(g * SIZE, (g + 1) * SIZE), range(g * group, (g + 1) * group)
                heads = [slice(h * SIZE, (h + 1) * SIZE) for h in q]
                if pair == "VO":
                    apply(tensors, prefix + "v_proj", kv, m)
                    name = prefix + "o_proj.weight"
                    for h in heads:
                        tensors[name][:, h] = (tensors[name][:, h].double() @ m.inverse()).float()
                else:
                    apply(tensors, prefix + "k_proj", kv, m.inverse().T)
                    for h in heads:
                        apply(tensors, prefix + "q_proj", h, m)

    def apply(tensors: Tensors, name: str, rows: slice, m: torch.Tensor) -> None:
        for t in (f"{name}.weight", f"{name}.bias"):
            if t in tensors:
                tensors[t][rows] = (m @ tensors[t][rows].double()).float()

    def gpt2(tensors: Tensors) -> None:
        for name in [n for n in tensors if n.endswith("attn.c_attn.weight")]:
            prefix, width = name.removesuffix("c_attn.weight"), HEADS * SIZE
            for h in range(HEADS):
                m = matrix(rotary=False)
                other = m.inverse().T
                for at, x in ((0, m), (1, other)) if pair == "QK" else ((2, m),):
                    cols = slice(at * width + h * SIZE, at * width + (h + 1) * SIZE)
                    weight, bias = tensors[name], tensors[prefix + "c_attn.bias"]
                    weight[:, cols] = (weight[:, cols].double() @ x.T).float()
                    bias[cols] = (x @ bias[cols].double()).float()
                if pair == "VO":
                    rows, out = slice(h * SIZE, (h + 1) * SIZE), tensors[prefix + "c_proj.weight"]
                    out[rows] = (other @ out[rows].double()).float()

    return edit(folder, gpt2 if arch == "gpt2" else llama)
