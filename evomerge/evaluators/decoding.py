"""Greedy decoding of many prompts at once, at the cost of its forward passes.

Against ``transformers.generate``: keys and values are written into room reserved for them, where
``DynamicCache`` copies everything at every step; rows that are finished leave the batch; what all
prompts begin with is computed once; and the text is looked at only when a token may end it.
Transformers' continuous batching (``generate_batch``) is no help without a GPU: 100 documents of
the zoo take it 14 s of a core, and this loop 0.15 s.

A batch is laid out in columns: the shared beginning, then the rest of each prompt, padded on the
left so that all end in the same column, then what is generated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

Prompt = tuple[int, ...]

COMPACT_BELOW = 0.75
"""Share of rows still in use below which the others are thrown out. To copy the rest costs about
as much as one step for them, so it must also save that in the steps that may be left."""


class _Layer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, in memory that is reserved once and does not grow.

    Attributes:
        room: Keys and values, each (rows, heads, columns, width); empty until the sizes are known.
        rows: Rows that the next forward pass is about.
        first: Column that those rows begin in.
        n: Columns that are filled.
    """

    def __init__(self, n_rows: int, n_columns: int, padding: slice) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._size, self._padding = (n_rows, n_columns), padding
        self.room: list[torch.Tensor] = []
        self.rows, self.first, self.n = slice(None), 0, 0

    def reserve(self, like: Sequence[torch.Tensor]) -> None:
        """Reserves the memory. Padding is read, with weight zero, but not written: zeros."""
        n_rows, n_columns = self._size
        self.room = [t.new_empty(n_rows, t.shape[1], n_columns, t.shape[3]) for t in like]
        for t in self.room:
            t[:, :, self._padding] = 0
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes the new columns and returns all of these rows."""
        if not self.room:
            self.reserve((key_states, value_states))
        end = self.n + key_states.shape[-2]
        keys, values = (t[self.rows] for t in self.room)
        keys[:, :, self.n : end] = key_states
        values[:, :, self.n : end] = value_states
        self.n = end
        return keys[:, :, self.first : end], values[:, :, self.first : end]

    def get_seq_length(self) -> int:
        """Number of columns that the next forward pass finds filled."""
        return self.n - self.first


class _Columns(Cache):
    """One :class:`_Layer` per layer of the model."""

    def __init__(self, n_layers: int, n_rows: int, n_columns: int, padding: slice) -> None:
        self._own = [_Layer(n_rows, n_columns, padding) for _ in range(n_layers)]
        super().__init__(layers=list(self._own))

    def begin(self, prefix: _Columns, n: int) -> None:
        """Copies the n columns of a shared beginning into every row."""
        for layer, other in zip(self._own, prefix._own, strict=True):
            layer.reserve(other.room)
            for mine, its in zip(layer.room, other.room, strict=True):
                mine[:, :, :n] = its[:, :, :n]

    def focus(self, rows: slice, first: int, n: int) -> None:
        """Sets what the next forward pass is about."""
        for layer in self._own:
            layer.rows, layer.first, layer.n = rows, first, n

    def keep(self, rows: torch.Tensor) -> None:
        """Throws out all other rows."""
        for layer in self._own:
            layer.room = [t[rows.to(t.device)] for t in layer.room]


class Greedy:
    """Continues prompts with the most likely token until something ends them.

    Args:
        model: A causal model whose layers all keep keys and values, in evaluation mode.
        n_layers: How many layers that are.
        accepts: Names of the arguments of its forward pass.
        device: Where it is.
        tokens_per_pass: Prompt tokens of one forward pass.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        n_layers: int,
        accepts: frozenset[str],
        device: torch.device,
        tokens_per_pass: int,
    ) -> None:
        self._model, self._n_layers, self._device = model, n_layers, device
        self._positions = "position_ids" in accepts
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepts else {}
        self._tokens_per_pass = tokens_per_pass
        self._prefix: tuple[Prompt, _Columns] | None = None

    def extend(
        self,
        prompts: Sequence[Prompt],
        n_shared: int,
        n_new: int,
        ended: Callable[[list[int]], bool],
    ) -> list[list[int]]:
        """Generates.

        Args:
            prompts: Token ids, longest first.
            n_shared: Tokens that all begin with, fewer than the shortest has.
            n_new: Most tokens that are generated per prompt, >= 1.
            ended: Whether these generated tokens are an answer's last.

        Returns:
            The generated tokens per prompt, what ended them included.

        Raises:
            FloatingPointError: When logits are not finite.
        """
        tokens, mask, cache = self._read(prompts, n_shared, n_new)
        width = mask.shape[1] - n_new
        padded = len(prompts[-1]) < width
        positions = torch.tensor([len(prompt) for prompt in prompts], device=self._device)
        answers: list[list[int]] = [[] for _ in prompts]
        rows = list(range(len(prompts)))  # the answer that each row of the batch is; -1: ended
        for step in range(n_new):
            for at, token in enumerate(tokens.tolist()):
                if token < 0:
                    raise FloatingPointError(
                        "the merged model's logits are not finite: its weights overflowed."
                    )
                if rows[at] >= 0:
                    answer = answers[rows[at]]
                    answer.append(token)
                    if ended(answer):
                        rows[at] = -1
            live = [at for at, row in enumerate(rows) if row >= 0]
            left = n_new - step - 1
            if not live or not left:
                break
            saved = (len(rows) - len(live)) * left
            if len(live) <= COMPACT_BELOW * len(rows) and saved > len(live):
                kept = torch.tensor(live, device=self._device)
                rows = [rows[at] for at in live]
                tokens, positions, mask = tokens[kept], positions[kept], mask[kept]
                cache.keep(kept)
            seen = mask[:, : width + step + 1] if padded else None
            logits = self._forward(tokens[:, None], seen, (positions + step)[:, None], cache)
            tokens = _most_likely(logits)
        return answers

    def _beginning(self, prefix: Prompt) -> _Columns:
        """The keys and values of a shared beginning; kept for the next batch."""
        if self._prefix is None or self._prefix[0] != prefix:
            cache = _Columns(self._n_layers, 1, len(prefix), slice(0))
            tokens = torch.tensor([prefix], device=self._device)
            self._forward(
                tokens, None, torch.arange(len(prefix), device=self._device)[None], cache
            )
            self._prefix = (prefix, cache)
        return self._prefix[1]

    def _read(
        self, prompts: Sequence[Prompt], n_shared: int, n_new: int
    ) -> tuple[torch.Tensor, torch.Tensor, _Columns]:
        """Reads the prompts, some rows at a time.

        Returns:
            (B,) first tokens of the answers, (B, columns) whether a column is none of padding,
            and the keys and values.
        """
        rests = [prompt[n_shared:] for prompt in prompts]
        width = len(prompts[0])
        mask = torch.ones(len(prompts), width + n_new, dtype=torch.long)
        for row, rest in enumerate(rests):
            mask[row, n_shared : width - len(rest)] = 0
        mask = mask.to(self._device)
        padding = slice(n_shared, width - len(rests[-1]))
        cache = _Columns(self._n_layers, len(prompts), width + n_new, padding)
        if n_shared:
            cache.begin(self._beginning(prompts[0][:n_shared]), n_shared)
        tokens: list[torch.Tensor] = []
        start = 0
        while start < len(rests):
            longest = len(rests[start])
            end = min(len(rests), start + max(1, self._tokens_per_pass // longest))
            inputs = torch.zeros(end - start, longest, dtype=torch.long)
            for row, rest in enumerate(rests[start:end]):
                inputs[row, longest - len(rest) :] = torch.tensor(rest)
            first = 0 if n_shared else width - longest  # columns that are padding for all of them
            cache.focus(slice(start, end), first, width - longest)
            seen = mask[start:end, first:width]
            positions = (seen.cumsum(-1) - 1).clamp(min=0)[:, -longest:]
            padded = first + n_shared + len(rests[end - 1]) < width
            logits = self._forward(
                inputs.to(self._device), seen if padded else None, positions, cache
            )
            tokens.append(_most_likely(logits))
            start = end
        cache.focus(slice(None), 0, width)
        return torch.cat(tokens), mask, cache

    def _forward(
        self,
        tokens: torch.Tensor,
        mask: torch.Tensor | None,
        positions: torch.Tensor,
        cache: _Columns,
    ) -> torch.Tensor:
        """(B, V) logits of the last column."""
        given: dict[str, Any] = {"position_ids": positions} if self._positions else {}
        logits: torch.Tensor = self._model(
            input_ids=tokens,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **given,
            **self._last_only,
        ).logits[:, -1]
        return logits


def _most_likely(logits: torch.Tensor) -> torch.Tensor:
    """(B,) tokens, -1 for a row whose (V,) logits are not all finite."""
    smallest, largest = torch.aminmax(logits, dim=-1)  # both are NaN if any is
    finite = torch.isfinite(smallest) & torch.isfinite(largest)
    return torch.where(finite, logits.argmax(dim=-1), -1)
