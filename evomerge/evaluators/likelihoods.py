"""Log-likelihoods of packed requests on the model that is loaded now."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from evomerge.evaluators.batches import Batch, Encoded, Packing
from evomerge.evaluators.last_block import LastBlock, Positions, on
from evomerge.evaluators.memory import in_pieces
from evomerge.evaluators.packing import pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

PAIRS_PER_TOKEN = 4
"""Attention pairs that cost as much as one token, in units of the hidden size. Counting operations
gives 6; under a mask on a CPU it is 6 for a hidden size of 768 and rows of 1,024 tokens; for 128,
documents after one prefix are fastest with 4 (0.27 s; 0.38 with 8 or 16)."""

LOGITS_PER_STEP = {"cpu": 2**20, "cuda": 2**27}
"""Logits that are normalised at a time, by device type: what stays in a cache, and what a float32
copy may take."""

ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-3}
"""How far, in nats per request, a shared row may be from plain ones; 0.1 for smaller dtypes."""


class Likelihoods:
    """Scores requests on a resident causal model.

    The output layer is given only the positions whose logits are needed, through a hook on it, so
    that whatever a model does to its logits afterwards (scaling, soft caps) still happens. So is
    the last feed-forward block, where that gives the same.

    Args:
        model: The resident model.
        packing: How requests are packed; ``pairs_per_token`` is settled here.
    """

    def __init__(self, model: PreTrainedModel, packing: Packing) -> None:
        hidden = getattr(model.config.get_text_config(), "hidden_size", 0)
        self._sharing = packing.sharing(PAIRS_PER_TOKEN * hidden)
        self._plain = packing.sharing(0)
        self._wanted: list[Positions] = []  # one, or none
        self._last = LastBlock(model, self._wanted)

    def pack(self, model: PreTrainedModel, encoded: Sequence[Encoded]) -> tuple[list[Batch], bool]:
        """Packs requests, with shared beginnings where the model can take them.

        Not every model can: recurrent ones, windows shorter than a row, positions that are not
        position ids. So a shared row is scored both ways, with the weights that are loaded.

        Returns:
            Batches, and whether they are for all candidates: weights that give NaN cannot tell.
        """
        batches = pack(encoded, self._sharing)
        branching = [b for b in batches if b.reach is not None]
        agree = self._agree(model, branching[0], encoded) if branching else True
        if agree:
            return batches, True
        if agree is not None:
            log.info("%s cannot share the beginnings of requests.", type(model).__name__)
            self._sharing = self._plain
        return pack(encoded, self._plain), agree is not None

    def score(
        self, model: PreTrainedModel, batches: list[Batch], n: int, *, greedy: bool = True
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Scores packed requests.

        A batch that does not fit into memory is replaced, in ``batches``, by its halves.

        Args:
            model: The model with the candidate's weights, in evaluation mode.
            batches: From :meth:`pack`.
            n: Number of slots.
            greedy: Whether the second answer is wanted; it is True everywhere otherwise.

        Returns:
            (n,) log-likelihoods in nats, and (n,) whether every token was the most likely one.
        """
        totals, misses = np.zeros(n), np.zeros(n)
        if self._last.usable is None and batches:
            self._last.usable = self._short_way(model, batches[0].part(0, 1))
        with self.hooked(model):
            forward = functools.partial(self._forward, model, greedy=greedy)
            scored = in_pieces(batches, forward, Batch.halves)
        if scored:  # the device is not waited for before here
            slots = torch.cat([b.slots for b in batches]).numpy()
            lls, hits = (torch.cat(parts).cpu().numpy() for parts in zip(*scored, strict=True))
            np.add.at(totals, slots, lls.astype(np.float64))
            np.add.at(misses, slots, ~hits)
        return totals, misses == 0

    def _agree(
        self, model: PreTrainedModel, batch: Batch, encoded: Sequence[Encoded]
    ) -> bool | None:
        """Whether the first row of a branching batch gives what plain rows give; None for NaN."""
        row = batch.part(0, 1)
        index = {int(slot): i for i, slot in enumerate(dict.fromkeys(row.slots.tolist()))}
        plain = [(index[slot], a, b) for slot, a, b in encoded if slot in index]
        shared = pack(plain, self._sharing)
        try:
            a, _ = self.score(model, shared, len(index))
            b, _ = self.score(model, pack(plain, self._plain), len(index))
        except (RuntimeError, ValueError, TypeError) as err:
            log.info("%s refuses a shared row: %s", type(model).__name__, err)
            return False
        if np.isnan(b).any():
            return None
        far = np.abs(a - b)[np.isfinite(b)]
        same = np.array_equal(np.isfinite(a), np.isfinite(b))
        return same and bool(far.sum() <= ROUNDING.get(model.dtype, 0.1) * len(far))

    def _short_way(self, model: PreTrainedModel, row: Batch) -> bool | None:
        """Whether a row scores the same where :class:`LastBlock` is used; None: it cannot tell.

        It is asked for one position, so that a block that needs the others shows it.
        """
        if row.tokens.numel() == 1:
            return None
        found = []
        for way in (False, True):
            try:
                with self.hooked(model, short=way):
                    found.append(self._forward(model, row.last(), greedy=False)[0])
            except Exception as err:  # noqa: BLE001 - whatever a block makes of it
                log.info("%s takes the long way: %s", type(model).__name__, err)
                return False
        whole, short = found
        if torch.isnan(whole).any():
            return None
        return bool(((whole - short).abs() <= ROUNDING.get(model.dtype, 0.1)).all())

    @contextlib.contextmanager
    def hooked(self, model: PreTrainedModel, *, short: bool | None = None) -> Iterator[None]:
        """Lets the output layer, and the last block, see only the positions that are wanted.

        Args:
            model: The resident model.
            short: See :meth:`LastBlock.hooked`.
        """
        head: torch.nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        handle = None if head is None else head.register_forward_pre_hook(self._take)
        try:
            with self._last.hooked(short):
                yield
        finally:
            self._wanted.clear()
            if handle is not None:
                handle.remove()

    def _take(self, _: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not self._wanted:
            return None
        return (args[0][on(self._wanted.pop(), args[0])][None], *args[1:])

    def inputs(self, model: PreTrainedModel, batch: Batch) -> dict[str, torch.Tensor]:
        """What the model's forward takes."""
        given = {"input_ids": batch.tokens}
        if (allowed := batch.mask()) is not None:
            bias = torch.zeros(allowed.shape, dtype=model.dtype, device=allowed.device)
            given["attention_mask"] = bias.masked_fill_(~allowed, torch.finfo(model.dtype).min)
            given["position_ids"] = batch.depths
        return given

    def logits(
        self, model: PreTrainedModel, batch: Batch, inputs: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """(U, V) logits at the positions that are needed; inside :meth:`hooked`."""
        self._wanted[:] = [(batch.rows, batch.columns)]
        logits: torch.Tensor = model(**inputs, use_cache=False).logits
        if not self._wanted:
            return logits[0]
        return logits[self._wanted.pop()]  # an output layer that is no module of its own

    def _forward(
        self, model: PreTrainedModel, batch: Batch, *, greedy: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(P,) log-probabilities of the targets and whether each is the most likely token.

        As ``log_softmax`` has them, without keeping it: a target's distance from the largest logit
        plus the log-probability of that. Of equal logits the first is the most likely, as in
        ``argmax``, which takes four times as long as ``max`` in bfloat16.
        """
        logits = self.logits(model, batch, self.inputs(model, batch))
        at_once = LOGITS_PER_STEP.get(logits.device.type, LOGITS_PER_STEP["cpu"])
        parts = torch.split(logits, max(1, at_once // logits.shape[-1]))
        most = torch.cat([part.log_softmax(-1, dtype=torch.float32).amax(-1) for part in parts])
        if greedy:
            found = [part.max(-1) for part in parts]
            largest, best = (torch.cat(pieces) for pieces in zip(*found, strict=True))
            hits = best[batch.places] == batch.targets
        else:
            largest = torch.cat([part.amax(-1) for part in parts])
            hits = torch.ones_like(batch.targets, dtype=torch.bool)
        below = logits[batch.places, batch.targets].float() - largest[batch.places].float()
        return below + most[batch.places], hits
