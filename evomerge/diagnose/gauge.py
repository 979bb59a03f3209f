"""The gauge check: weights that were rewritten without changing what they compute.

Attention uses its four matrices only in products: a head's scores depend on ``W_q W_k^T`` and its
output on ``W_v W_o``. So ``W_v S, S^-1 W_o`` computes what ``W_v, W_o`` do, for any invertible S,
and ``W_q R, W_k R^-T`` what ``W_q, W_k`` do; an average with such weights does not. Comparing the
products with the base's tells such a model from one that learned something else.

With rotary positions only an R that commutes with the rotations leaves the outputs alone: a
scaling and a turn of each pair of rotated rows. Read as one complex row each, query and key of a
pair enter the scores only as ``conj(q) x k``, and that product is compared.

Source: MergeLock (Model Unmerging, 2025), and the products' invariance. Inner products of products
need no d x d matrix: ``<A B, C D> = tr((A^T C)(D B^T))``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch

from evomerge.checkpoint import Checkpoint
from evomerge.experts import ExpertPool
from evomerge.roles import layer_of

Array = npt.NDArray[np.float64]

# Rotary positions on whole heads, first half of a head's rows paired with the second.
_HALF_ROTARY = {
    "llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma", "gemma2",
    "gemma3_text", "granite", "starcoder2", "olmo2", "olmo3",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Gauge:
    """How far the factors and their products are from the base's.

    Attributes:
        layers: The n layers that were checked, by index.
        change: Pair (``"QK"`` or ``"VO"``) to (n, K, 2): norm of the factors' change by that of
            the base's factors, and the same of their products.
        skipped: Pair to why it was not checked.
    """

    layers: tuple[int, ...]
    change: Mapping[str, Array]
    skipped: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class _Attention:
    """Shapes of one kind of attention, and the names of its weights in a layer."""

    heads: int
    kv_heads: int
    size: int
    fused: bool

    def factors(self, checkpoint: Checkpoint, prefix: str) -> dict[str, torch.Tensor]:
        """The layer's factors in float64.

        Returns:
            q, k, v of (heads or kv_heads, size, width + 1), the bias as the last column, and o of
            (heads, width, size).
        """
        if self.fused:
            weight = _read(checkpoint, prefix + "c_attn.weight").T
            bias = _read(checkpoint, prefix + "c_attn.bias")
            rows = torch.cat([weight, bias[:, None]], dim=1)
            parts = dict(zip("qkv", rows.chunk(3), strict=True))
            out = _read(checkpoint, prefix + "c_proj.weight").T
        else:
            parts = {}
            for key in "qkv":
                weight = _read(checkpoint, f"{prefix}{key}_proj.weight")
                name = f"{prefix}{key}_proj.bias"
                bias = (
                    _read(checkpoint, name)
                    if name in checkpoint.tensors
                    else weight.new_zeros(len(weight))
                )
                parts[key] = torch.cat([weight, bias[:, None]], dim=1)
            out = _read(checkpoint, prefix + "o_proj.weight")
        split = {k: p.reshape(-1, self.size, p.shape[1]) for k, p in parts.items()}
        split["o"] = out.reshape(out.shape[0], self.heads, self.size).transpose(0, 1)
        return split


def gauge(pool: ExpertPool, progress: Callable[[str], None] | None = None) -> Gauge:
    """Compares factors and products with the base's, layer by layer.

    Memory: one layer's attention of two models in float64.

    Args:
        pool: A base and K experts.
        progress: Told the prefix of each layer's attention before it is read.
    """
    assert pool.base is not None  # noqa: S101 - the doctor always has one
    names = {t.name for t in pool.tensors}
    found = _attention(pool.base, names)
    if found is None:
        why = "the names or shapes of its attention weights are not known"
        return Gauge((), {}, {"QK": why, "VO": why})
    attention, prefixes = found
    pairs: dict[str, Callable[..., float]] = {"VO": _products}
    skipped = {}
    kind = str(pool.base.config.get("model_type"))
    if any(".q_norm." in n or ".k_norm." in n for n in names):
        skipped["QK"] = "queries and keys are normalised after projection"
    elif attention.fused:
        pairs["QK"] = _products
    elif kind in _HALF_ROTARY and pool.base.config.get("partial_rotary_factor") in {None, 1}:
        pairs["QK"] = _rotary
    else:
        skipped["QK"] = f"how {kind!r} uses rotary positions is not known"
    change = {p: np.zeros((len(prefixes), len(pool.experts), 2)) for p in pairs}
    for i, prefix in enumerate(prefixes):
        if progress:
            progress(prefix)
        base = attention.factors(pool.base, prefix)
        for k, expert in enumerate(pool.experts):
            mine = attention.factors(expert, prefix)
            for pair, measure in pairs.items():
                a, b = pair[0].lower(), pair[1].lower()
                change[pair][i, k, 0] = _factors(base, mine, a, b)
                change[pair][i, k, 1] = measure(base, mine, a, b)
    return Gauge(tuple(layer_of(p) or 0 for p in prefixes), change, skipped)


def _attention(base: Checkpoint, names: set[str]) -> tuple[_Attention, list[str]] | None:
    """The attention's shapes and its layers' prefixes, or None where they are not known."""
    config = base.config
    heads = config.get("num_attention_heads") or config.get("n_head")
    fused = config.get("model_type") == "gpt2"
    last = ["c_attn.weight", "c_attn.bias", "c_proj.weight"]
    if not fused:
        last = [f"{key}_proj.weight" for key in "qkvo"]
    # GPT-2 has a c_proj in its MLP too, so the first name decides what a layer's prefix is.
    prefixes = [n.removesuffix(last[0]) for n in names if n.endswith(f".{last[0]}")]
    prefixes = [
        p for p in prefixes if all(p + w in names for w in last) and layer_of(p) is not None
    ]
    if not heads or not prefixes:
        return None
    rows = base.tensors[prefixes[0] + last[0]].shape
    width = rows[1] // 3 if fused else rows[0]
    kv_heads = heads if fused else config.get("num_key_value_heads") or heads
    size = width // heads
    fits = width == heads * size and heads % kv_heads == 0
    if not fused:
        fits = fits and base.tensors[prefixes[0] + "k_proj.weight"].shape[0] == kv_heads * size
    attention = _Attention(heads, kv_heads, size, fused)
    return (attention, sorted(prefixes, key=lambda p: layer_of(p) or 0)) if fits else None


def _read(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    return checkpoint.tensor(name).double()


def _factors(
    base: Mapping[str, torch.Tensor], mine: Mapping[str, torch.Tensor], a: str, b: str
) -> float:
    moved = sum(float((mine[x] - base[x]).square().sum()) for x in (a, b))
    return float((moved / sum(float(base[x].square().sum()) for x in (a, b))) ** 0.5)


def _products(
    base: Mapping[str, torch.Tensor], mine: Mapping[str, torch.Tensor], a: str, b: str
) -> float:
    """Relative change of W_v W_o (any attention) or W_q W_k^T (without rotary), head by head."""

    def inner(x: Mapping[str, torch.Tensor], y: Mapping[str, torch.Tensor]) -> float:
        left = x[a] @ y[a].transpose(1, 2)
        right = x[b].transpose(1, 2) @ y[b] if b == "o" else x[b] @ y[b].transpose(1, 2)
        left = left.repeat_interleave(len(right) // len(left), dim=0)
        return float((left * right).sum())

    return _relative(inner(base, base), inner(base, mine), inner(mine, mine))


def _rotary(
    base: Mapping[str, torch.Tensor], mine: Mapping[str, torch.Tensor], a: str, b: str
) -> float:
    """Relative change of ``conj(q) x k`` of every rotated pair of rows."""
    rows = []
    for factors in (base, mine):
        halves = [factors[x].chunk(2, dim=1) for x in (a, b)]
        rows.append([torch.complex(first, second) for first, second in halves])

    def inner(x: int, y: int) -> float:
        left, right = ((rows[x][i].conj() * rows[y][i]).sum(dim=2) for i in (0, 1))
        right = right.repeat_interleave(len(left) // len(right), dim=0)
        return float((left.conj() * right).sum().real)

    return _relative(inner(0, 0), inner(0, 1), inner(1, 1))


def _relative(base: float, cross: float, mine: float) -> float:
    """``|M' - M| / |M|`` from inner products."""
    return float((max(base - 2 * cross + mine, 0.0) / base) ** 0.5) if base > 0 else 0.0
