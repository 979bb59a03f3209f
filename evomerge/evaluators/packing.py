"""Requests laid out as rows of prefix trees, and rows as batches."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence

import torch

from evomerge.errors import TaskError
from evomerge.evaluators.batches import Batch, Encoded, Packing, tokens_per_batch

log = logging.getLogger(__name__)

LOGITS_PER_BATCH = 2**28
"""Logits of one batch under ``batch_size="auto"``: 1 GiB in float32."""

Input = tuple[int, ...]
"""Input ids: context and continuation without its last token, cut to the model's window."""

Inputs = Mapping[Input, Sequence[tuple[int, list[int]]]]
"""Input to the slots and continuations that end there."""


def check_encoded(encoded: Sequence[Encoded], max_length: int) -> None:
    """Refuses what cannot be scored, and warns of what is cut.

    Raises:
        TaskError: For an empty context or continuation, or one longer than the window.
    """
    for _, context, continuation in encoded:
        if not context or not 0 < len(continuation) <= max_length:
            raise TaskError(
                f"a request has {len(context)} context and {len(continuation)} continuation "
                f"tokens; both must be >= 1, and the continuation <= max_length ({max_length})."
            )
    n_long = sum(len(a) + len(b) > max_length + 1 for _, a, b in encoded)
    if n_long:
        log.warning(
            "%d of %d requests are longer than %d tokens and lose their beginning, as in lm-eval. "
            "Fewer few-shot examples or a larger max_length would keep it.",
            n_long,
            len(encoded),
            max_length,
        )


def pack(encoded: Sequence[Encoded], packing: Packing) -> list[Batch]:
    """Packs encoded requests into batches, the longest first; equal inputs are one input.

    Inputs that are too long lose their beginning, as in lm-eval.

    Args:
        encoded: Requests that :func:`check_encoded` accepts.
        packing: How.
    """
    inputs = _inputs(encoded, packing.max_length)
    trees = [_Tree(m, inputs) for m in _shared(sorted(inputs), packing.pairs_per_token)]
    trees.sort(key=lambda tree: -tree.length)
    batches: list[Batch] = []
    while trees:
        rows, trees = _fill(trees, packing)
        members = [[tokens for tree in row for tokens in tree.members] for row in rows]
        batches.append(_batch([_Row(row, inputs) for row in members], packing.device))
    return batches


def _inputs(encoded: Sequence[Encoded], max_length: int) -> Inputs:
    """Cuts requests to the window and gathers those with equal input."""
    inputs: dict[Input, list[tuple[int, list[int]]]] = {}
    for slot, context, continuation in encoded:
        tokens = tuple((context + continuation)[-(max_length + 1) :][:-1])
        inputs.setdefault(tokens, []).append((slot, continuation))
    return inputs


def _shared(ordered: Sequence[Input], pairs_per_token: int) -> Iterator[list[Input]]:
    """Cuts sorted inputs into prefix trees: an input joins those before it where that costs less.

    A row of n tokens costs n, plus its n^2 attention pairs at ``pairs_per_token`` to the token.
    """

    def cost(n: int) -> float:
        return n + n * n / pairs_per_token

    members: list[Input] = []
    length = 0
    for tokens in ordered:
        if members and pairs_per_token:
            grown = length + len(tokens) - common(members[-1], tokens)
            if cost(grown) - cost(length) < cost(len(tokens)):
                members.append(tokens)
                length = grown
                continue
        if members:
            yield members
        members, length = [tokens], len(tokens)
    if members:
        yield members


class _Tree:
    """Sorted inputs that share a row, and what they need."""

    def __init__(self, members: list[Input], inputs: Inputs) -> None:
        self.members = members
        self.length = len(members[0])
        for before, tokens in itertools.pairwise(members):
            self.length += len(tokens) - common(before, tokens)
        self.n_logits = sum(len(c) for tokens in members for _, c in inputs[tokens])


def _fill(trees: Sequence[_Tree], packing: Packing) -> tuple[list[list[_Tree]], list[_Tree]]:
    """Lays trees, the longest first, into the rows of one batch; what finds no room is left.

    The first decides how long the rows are. Room that would be padding is filled with further
    trees (first-fit decreasing), unless the model cannot tell the trees of a row apart.
    """
    length = trees[0].length
    at_once = packing.batch_size
    most = tokens_per_batch(packing.device) if isinstance(at_once, str) else at_once * length
    rows: list[list[_Tree]] = []
    room: list[int] = []
    left: list[_Tree] = []
    n_inputs = n_logits = 0
    for tree in trees:
        n_inputs += len(tree.members)
        n_logits += tree.n_logits
        if isinstance(at_once, str):
            full = n_logits * packing.vocabulary > LOGITS_PER_BATCH
        else:
            full = n_inputs > at_once
        fits = (
            r for r, free in enumerate(room) if packing.pairs_per_token and tree.length <= free
        )
        row = next(fits, None)
        if not rows or (row is None and not full and (len(rows) + 1) * length <= most):
            rows.append([tree])
            room.append(length - tree.length)
        elif row is not None and not full:
            rows[row].append(tree)
            room[row] -= tree.length
        else:
            n_inputs -= len(tree.members)
            n_logits -= tree.n_logits
            left.append(tree)
    return rows, left


def common(a: Input, b: Input) -> int:
    """Number of tokens that two inputs, and all that sort between them, begin with alike."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # slices compare at the speed of C
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class _Row:
    """Prefix trees of sorted inputs, one after the other in preorder, and what is scored."""

    def __init__(self, members: Sequence[Input], inputs: Inputs) -> None:
        self.tokens: list[int] = []
        self.depths: list[int] = []
        self.reach: list[int] = []
        self.scored: list[tuple[int, int, int]] = []  # column, target, slot
        self.branches = False
        path: list[int] = []  # columns of the tokens of the input that was added last
        before: Input = ()
        for tokens in members:
            kept = common(before, tokens)
            self.branches |= kept < len(path)
            for column in path[kept:]:
                self.reach[column] = len(self.tokens)
            del path[kept:]
            for depth in range(kept, len(tokens)):
                path.append(len(self.tokens))
                self.tokens.append(tokens[depth])
                self.depths.append(depth)
                self.reach.append(0)
            for slot, continuation in inputs[tokens]:
                first = len(tokens) - len(continuation)
                columns = path[first:]
                self.scored += zip(columns, continuation, [slot] * len(columns), strict=True)
            before = tokens
        for column in path:
            self.reach[column] = len(self.tokens)


def _batch(chunk: Sequence[_Row], device: torch.device) -> Batch:
    """Pads rows on the right; a padding token attends to itself, and nobody to it."""
    n, length = len(chunk), max(len(row.tokens) for row in chunk)
    tokens, depths = torch.zeros(2, n, length, dtype=torch.long)
    reach = torch.arange(1, length + 1).repeat(n, 1)
    needed: dict[tuple[int, int], int] = {}
    places, targets, slots = [], [], []
    for r, row in enumerate(chunk):
        k = len(row.tokens)
        tokens[r, :k] = torch.tensor(row.tokens)
        depths[r, :k] = torch.tensor(row.depths)
        reach[r, :k] = torch.tensor(row.reach)
        for column, target, slot in row.scored:
            places.append(needed.setdefault((r, column), len(needed)))
            targets.append(target)
            slots.append(slot)
    rows, columns = torch.tensor(list(needed), dtype=torch.long).T
    return Batch(
        tokens=tokens.to(device),
        depths=depths.to(device),
        reach=reach.to(device) if any(row.branches for row in chunk) else None,
        rows=rows.to(device),
        columns=columns.to(device),
        places=torch.tensor(places).to(device),
        targets=torch.tensor(targets).to(device),
        slots=torch.tensor(slots),
    )
