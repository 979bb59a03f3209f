"""What a tensor is to the model, by its name: its layer, and its role there."""

from __future__ import annotations

import re

ROLES = ("attention", "mlp", "norm", "embedding", "head", "other")

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|encoder|decoder)\.(\d+)\.")
_ROLE_TOKENS = (
    (
        "attention",
        re.compile(r"(self_|cross_|linear_)?(attn|attention)|mixer|mamba|SelfAttention|EncDec\w+"),
    ),
    (
        "mlp",
        re.compile(r"mlp|ffn|feed_forward|block_sparse_moe|moe|experts|fc_?\d|[dD]ense_?\w+"),
    ),
    ("head", re.compile(r"lm_head|embed_out|output|score")),
    ("embedding", re.compile(r"\w*embed\w*|wte|wpe|tok_embeddings|shared")),
    ("norm", re.compile(r"\w*(norm|layernorm)\w*|ln_?\w+")),
)


def layer_of(name: str) -> int | None:
    """Index of the transformer layer that a tensor belongs to, or None."""
    match = _LAYER.search(name)
    return int(match.group(1)) if match else None


def role_of(name: str) -> str:
    """Role of a tensor by the parts of its name: one of :data:`ROLES`."""
    parts = name.split(".")[:-1]
    for role, pattern in _ROLE_TOKENS:
        if role in {"head", "embedding"} and layer_of(name) is not None:
            continue
        if any(pattern.fullmatch(p) for p in parts):
            return role
    return "other"
