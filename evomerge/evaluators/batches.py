"""Forward passes for log-likelihood requests, used for every candidate.

Requests that begin alike share the work: the choices of one question, and the questions that
follow one few-shot prefix. Inputs are sorted, and those that begin alike are laid into one row as
a prefix tree in preorder, each token of the tree once; a token attends to its ancestors only, so
that every position has the hidden state that it has in the plain input. There is no cache to copy,
and one pass scores everything. (The tree masks of speculative decoding are the same device: Miao
et al. 2023, SpecInfer, arXiv:2305.09781.)

In preorder the descendants of a token follow it, up to its *reach*: token j is an ancestor of
token i, or i itself, exactly if ``j <= i < reach[j]``. So a mask is one integer per token.
"""

from __future__ import annotations

import dataclasses

import torch

TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 16384}
"""Input tokens of one batch under ``batch_size="auto"``, by device type.

On a CPU what one layer hands to the next should stay in the cache: with 1,024 tokens a zoo model
takes 6% less time than with 2,048 and 25% less than with 4,096.
"""

Encoded = tuple[int, list[int], list[int]]
"""A slot (the request that it belongs to), its context and its continuation."""


@dataclasses.dataclass(frozen=True)
class Packing:
    """What decides how requests are packed.

    Attributes:
        max_length: Longest input in tokens.
        batch_size: Inputs per batch, or ``"auto"``: by number of tokens.
        device: Where the model is; batches are put there.
        vocabulary: Number of logits per position.
        pairs_per_token: How many pairs of an attention row cost as much as one more token; 0: no
            sharing, every input is a row.
    """

    max_length: int
    batch_size: int | str
    device: torch.device
    vocabulary: int
    pairs_per_token: int = 0

    def sharing(self, pairs_per_token: int) -> Packing:
        """The same with another price of attention."""
        return dataclasses.replace(self, pairs_per_token=pairs_per_token)


@dataclasses.dataclass(frozen=True)
class Batch:
    """One forward pass: B rows of at most L tokens, and P tokens to be scored.

    Attributes:
        tokens: (B, L) input ids, padded on the right.
        depths: (B, L) position ids: the number of ancestors.
        reach: (B, L) end of a token's descendants, as above; None where no row branches, and the
            model's own causal mask does.
        rows: (U,) row of each position whose logits are needed.
        columns: (U,) and its column.
        places: (P,) index into ``rows`` of the position that predicts the scored token.
        targets: (P,) the scored token.
        slots: (P,) request that it belongs to.
    """

    tokens: torch.Tensor
    depths: torch.Tensor
    reach: torch.Tensor | None
    rows: torch.Tensor
    columns: torch.Tensor
    places: torch.Tensor
    targets: torch.Tensor
    slots: torch.Tensor

    def mask(self) -> torch.Tensor | None:
        """(B, 1, L, L) who attends to whom, boolean; None where the causal mask is right."""
        if self.reach is None:
            return None
        at = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return ((at[:, None] >= at) & (at[:, None] < self.reach[:, None, :]))[:, None]

    def halves(self) -> tuple[Batch, ...]:
        """The first and the second half of the rows; nothing where there is only one row."""
        n = len(self.tokens)
        return (self.part(0, n // 2), self.part(n // 2, n)) if n > 1 else ()

    def part(self, start: int, stop: int) -> Batch:
        """Some of the rows, and what is scored on them."""
        asked = self._asking((self.rows >= start) & (self.rows < stop))
        return dataclasses.replace(
            asked,
            tokens=self.tokens[start:stop],
            depths=self.depths[start:stop],
            reach=None if self.reach is None else self.reach[start:stop],
            rows=asked.rows - start,
        )

    def last(self) -> Batch:
        """The same rows, of which only the last position and what it predicts are scored."""
        needed = torch.zeros_like(self.rows, dtype=torch.bool)
        needed[-1] = True
        return self._asking(needed)

    def _asking(self, needed: torch.Tensor) -> Batch:
        """The same rows, of which only some positions are needed, and what they predict."""
        scored = needed[self.places]
        index = torch.cumsum(needed, 0) - 1
        return dataclasses.replace(
            self,
            rows=self.rows[needed],
            columns=self.columns[needed],
            places=index[self.places[scored]],
            targets=self.targets[scored],
            slots=self.slots[scored.cpu()],
        )


def tokens_per_batch(device: torch.device) -> int:
    """Input tokens of one batch under ``batch_size="auto"``."""
    return TOKENS_PER_BATCH.get(device.type, TOKENS_PER_BATCH["cpu"])
