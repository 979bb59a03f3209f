"""Forward passes for log-likelihood requests: packed once, used for every candidate."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from evomerge.errors import TaskError

log = logging.getLogger(__name__)

TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 16384}
"""Input tokens of one batch under ``batch_size="auto"``, by device type."""

LOGITS_PER_BATCH = 2**28
"""Logits of one batch under ``batch_size="auto"``: 1 GiB in float32."""

Encoded = tuple[int, list[int], list[int]]
"""A slot (the request that it belongs to), its context and its continuation."""

Inputs = Mapping[tuple[int, ...], Sequence[tuple[int, list[int]]]]
"""Input ids to the slots and continuations that end there."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """One forward pass: B distinct inputs, padded on the right, and P tokens to be scored.

    Attributes:
        tokens: (B, L) input ids.
        keep: (U,) positions whose logits are needed by any row.
        rows: (P,) row of each scored token.
        columns: (P,) index into ``keep`` of the position that predicts it.
        targets: (P,) the scored token.
        slots: (P,) request that it belongs to.
    """

    tokens: torch.Tensor
    keep: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    targets: torch.Tensor
    slots: torch.Tensor


def tokens_per_batch(device: torch.device) -> int:
    """Input tokens of one batch under ``batch_size="auto"``."""
    return TOKENS_PER_BATCH.get(device.type, TOKENS_PER_BATCH["cpu"])


def pack(
    encoded: Sequence[Encoded],
    max_length: int,
    batch_size: int | str,
    device: torch.device,
    vocabulary: int,
) -> list[Batch]:
    """Packs encoded requests into batches, longest first; requests with equal input share a row.

    Inputs that are too long lose their beginning, as in lm-eval.

    Args:
        encoded: Requests.
        max_length: Longest input in tokens.
        batch_size: Rows per batch, or ``"auto"``.
        device: Where the model is; decides what ``"auto"`` means.
        vocabulary: Number of logits per position.

    Raises:
        TaskError: For an empty context or continuation, or one longer than ``max_length``.
    """
    inputs: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
    n_long = 0
    for slot, context, continuation in encoded:
        if not context or not 0 < len(continuation) <= max_length:
            raise TaskError(
                f"a request has {len(context)} context and {len(continuation)} continuation "
                f"tokens; both must be >= 1, and the continuation <= max_length ({max_length})."
            )
        n_long += len(context) + len(continuation) > max_length + 1
        tokens = tuple((context + continuation)[-(max_length + 1) :][:-1])
        inputs.setdefault(tokens, []).append((slot, continuation))
    if n_long:
        log.warning(
            "%d of %d requests are longer than %d tokens and lose their beginning, as in lm-eval. "
            "Fewer few-shot examples or a larger max_length would keep it.",
            n_long,
            len(encoded),
            max_length,
        )
    batches: list[Batch] = []
    chunk: list[tuple[int, ...]] = []
    widest = 0
    for tokens in sorted(inputs, key=lambda t: (-len(t), t)):
        needed = max(len(continuation) for _, continuation in inputs[tokens])
        n = len(chunk) + 1
        if isinstance(batch_size, str):
            full = n * len(chunk[0] if chunk else tokens) > tokens_per_batch(device)
            full |= n * max(widest, needed) * vocabulary > LOGITS_PER_BATCH
        else:
            full = n > batch_size
        if chunk and full:
            batches.append(_batch(chunk, inputs))
            chunk, widest = [], 0
        chunk.append(tokens)
        widest = max(widest, needed)
    return [*batches, _batch(chunk, inputs)] if chunk else batches


def _batch(
    chunk: Sequence[tuple[int, ...]],
    inputs: Inputs,
) -> Batch:
    """Pads the rows on the right (no mask needed: the model is causal) and lists the targets."""
    tokens = torch.zeros(len(chunk), len(chunk[0]), dtype=torch.long)
    rows: list[int] = []
    positions: list[int] = []
    targets: list[int] = []
    slots: list[int] = []
    for row, key in enumerate(chunk):
        tokens[row, : len(key)] = torch.tensor(key)
        for slot, continuation in inputs[key]:
            n = len(continuation)
            rows += [row] * n
            positions += range(len(key) - n, len(key))
            targets += continuation
            slots += [slot] * n
    keep = np.unique(np.array(positions))
    return Batch(
        tokens=tokens,
        keep=torch.from_numpy(keep),
        rows=torch.tensor(rows),
        columns=torch.from_numpy(np.searchsorted(keep, positions)),
        targets=torch.tensor(targets),
        slots=torch.tensor(slots),
    )
