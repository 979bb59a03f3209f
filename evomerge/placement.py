"""Where each tensor of a checkpoint lives in the loaded model.

Most names agree. Some architectures are renamed or fused by transformers while they load: a
mixture of experts keeps one matrix per expert in its file and one stacked tensor in memory.
Instead of following transformers' conversion tables, which change, such tensors are found by
content: the model was just loaded from the pool's anchor, so every block of a live parameter
equals one of the anchor's tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from evomerge.errors import CheckpointError
from evomerge.experts import ExpertPool, MergeTensor
from evomerge.roles import layer_of

_PROBE = 8
"""Leading entries of a tensor that are compared before all of them are."""


def place(model: Any, pool: ExpertPool) -> dict[str, torch.Tensor]:
    """Checkpoint tensor name to the live memory that holds it.

    Names agree, or differ by the base-model prefix (``transformer.``, ``model.``), or the tensor
    is found by its content. A tied head is one live tensor with the embedding and need not appear
    in the checkpoint. A tensor that the model does not have (a stored rotary table, say) has no
    counterpart and is left out.

    Args:
        model: The Hugging Face model, with the weights of ``pool.anchor`` as they were loaded.
        pool: The models.

    Returns:
        Name to a contiguous view of the model's memory, of the tensor's shape.

    Raises:
        CheckpointError: A live parameter that no merged tensor writes, or not wholly.
    """
    found = _by_name(model, pool.tensors)
    written = {t.data_ptr() for t in found.values()}
    lost = {
        n: p.data for n, p in model.named_parameters() if p.data_ptr() not in written and p.numel()
    }
    if lost:
        left = [t for t in pool.tensors if t.name not in found]
        found |= _by_content(lost, left, pool, type(model).__name__)
    return found


def _by_name(model: Any, tensors: Sequence[MergeTensor]) -> dict[str, torch.Tensor]:
    live: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    live |= dict(model.named_buffers(remove_duplicate=False))
    # Old GPT-2 files store causal masks as floats; the model's own are booleans and stay.
    live = {name: t for name, t in live.items() if t.is_floating_point()}
    prefix = getattr(model, "base_model_prefix", "") + "."
    found: dict[str, torch.Tensor] = {}
    for tensor in tensors:
        name = tensor.name
        for candidate in (name, prefix + name, name.removeprefix(prefix)):
            if candidate in live and tuple(live[candidate].shape) == tensor.shape:
                found[name] = live[candidate].data
                break
    return found


def _by_content(
    lost: Mapping[str, torch.Tensor], tensors: Sequence[MergeTensor], pool: ExpertPool, model: str
) -> dict[str, torch.Tensor]:
    """Finds tensors as blocks of live parameters, layer by layer, each block used once.

    Tensors are taken in the order of the numbers in their names, as stacks are: experts that are
    copies of each other (an upcycled mixture) fall into their own places.
    """
    found: dict[str, torch.Tensor] = {}
    filled: dict[str, list[range]] = {name: [] for name in lost}
    for tensor in sorted(tensors, key=lambda t: _natural(t.name)):
        content = pool.anchor.tensor(tensor.name)
        hits = {
            name: block
            for name, p in lost.items()
            if layer_of(name) == layer_of(tensor.name)
            and (block := _first_block(p, content, filled[name])) is not None
        }
        if len(hits) > 1:
            raise CheckpointError(
                f"{tensor.name!r} equals parts of {' and '.join(map(repr, hits))} of {model}: it "
                "cannot be told which of them it fills."
            )
        for name, block in hits.items():
            found[tensor.name] = lost[name].view(-1)[block.start : block.stop].view(content.shape)
            filled[name].append(block)
    missing = [n for n, p in lost.items() if sum(map(len, filled[n])) < p.numel()]
    if missing:
        raise CheckpointError(
            f"{len(missing)} parameter(s) of {model} have no tensor of the same name and shape in "
            f"the checkpoint, nor one of the same content, the first is {missing[0]!r}. "
            "transformers changes this architecture's weights while loading in a way that "
            "evomerge cannot follow."
        )
    return found


def _first_block(
    live: torch.Tensor, content: torch.Tensor, filled: Sequence[range]
) -> range | None:
    """Where in flat ``live`` memory ``content`` lies, in whole rows outside ``filled``."""
    n, n_live = content.numel(), live.numel()
    width = live.shape[-1] if live.ndim > 1 else 1
    if not n or n > n_live or not live.is_contiguous():
        return None
    if live.ndim > 1 and content.shape[-1] != width:
        return None
    flat, wanted = live.view(-1), content.reshape(-1).to(live.device, live.dtype)
    probe = min(_PROBE, n if live.ndim == 1 else width)
    rows = flat.unfold(0, probe, 1) if live.ndim == 1 else live.view(-1, width)[:, :probe]
    for row in (rows == wanted[:probe]).all(dim=1).nonzero()[:, 0].tolist():
        block = range(row * width, row * width + n)
        if block.stop > n_live or any(
            f.start < block.stop and block.start < f.stop for f in filled
        ):
            continue
        if torch.equal(flat[block.start : block.stop], wanted):
            return block
    return None


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key: numbers in a name count as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
