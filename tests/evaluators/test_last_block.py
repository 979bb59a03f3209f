"""The last feed-forward block sees only the positions whose logits are needed."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.evaluators.batches import Packing
from evomerge.evaluators.last_block import last_mlp
from evomerge.evaluators.likelihoods import Likelihoods
from evomerge.evaluators.packing import pack
from tests.evaluators.test_likelihoods import ARCHS, CPU, VOCAB, ask, make

PACKING = Packing(256, "auto", CPU, VOCAB)


def scored(model: Any, encoded: Any, *, usable: bool | None) -> tuple[Any, Likelihoods, int]:
    """Log-likelihoods, the scorer, and how many positions the last block saw."""
    seen = 0

    def count(_: Any, args: Any, output: Any) -> None:
        nonlocal seen
        seen += args[0].shape[0] * args[0].shape[1]

    scorer = Likelihoods(model, PACKING)
    scorer._last.usable = usable
    batches = pack(encoded, PACKING)
    block = last_mlp(model)
    with torch.inference_mode():
        if usable is None:
            scorer.score(model, batches, len(encoded))  # makes up its mind
        handle = None if block is None else block.register_forward_hook(count)
        totals, _ = scorer.score(model, batches, len(encoded))
    if handle is not None:
        handle.remove()
    return totals, scorer, seen


@pytest.mark.parametrize("arch", [a for a in ARCHS if a != "t5"])
def test_the_scores_are_the_same(arch: str) -> None:
    model, encoded = make(arch), ask()
    want, _, everywhere = scored(model, encoded, usable=False)
    got, scorer, seen = scored(model, encoded, usable=None)
    np.testing.assert_allclose(got, want, atol=2e-4)
    if last_mlp(model) is not None:
        assert scorer._last.usable
        assert 0 < seen < everywhere / 4
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_most_architectures_have_such_a_block() -> None:
    assert sum(last_mlp(make(a)) is not None for a in ARCHS if a != "t5") >= 4


def test_where_nearly_all_positions_are_asked_for_it_sees_them_all() -> None:
    model = make("llama")
    text = np.random.default_rng(0).integers(0, VOCAB, 40).tolist()
    encoded = [(0, text[:1], text[1:])]
    _, _, everywhere = scored(model, encoded, usable=False)
    _, _, seen = scored(model, encoded, usable=True)
    assert seen == everywhere > 0


class Mixing(torch.nn.Module):
    """A block whose output at one position depends on all of them."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.inner(hidden - hidden.mean(1, keepdim=True))  # type: ignore[no-any-return]


class Pair(Mixing):
    """A block that returns more than its output."""

    def forward(self, hidden: torch.Tensor) -> Any:
        return (self.inner(hidden),)


def test_a_block_that_mixes_positions_is_noticed() -> None:
    model, encoded = make("llama"), ask()
    layer = model.model.layers[-1]
    layer.mlp = Mixing(layer.mlp)
    want, _, _ = scored(model, encoded, usable=False)
    got, scorer, _ = scored(model, encoded, usable=None)
    assert scorer._last.usable is False
    np.testing.assert_array_equal(got, want)


def test_it_is_noticed_on_a_row_whose_every_position_is_asked_for() -> None:
    """Such a row takes the long way itself, and says nothing of others unless it is asked less."""
    model = make("llama")
    layer = model.model.layers[-1]
    layer.mlp = Mixing(layer.mlp)
    text = np.random.default_rng(0).integers(0, VOCAB, 60).tolist()
    encoded = [(0, text[:1], text[1:]), (1, text[:40], text[40:41])]
    batches = pack(encoded, dataclasses.replace(PACKING, batch_size=1))
    assert len(batches) == 2
    scorer = Likelihoods(model, PACKING)
    with torch.inference_mode():
        scorer.score(model, [batches[0].part(0, 1)], 1)
    assert scorer._last.usable is False


def test_a_block_that_cannot_be_cut_short_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    model, encoded = make("llama"), ask()
    layer = model.model.layers[-1]
    layer.mlp = Pair(layer.mlp)
    scorer = Likelihoods(model, PACKING)
    with torch.inference_mode(), caplog.at_level(logging.INFO):
        assert scorer._short_way(model, pack(encoded, PACKING)[0]) is False
    assert "takes the long way" in caplog.text


def test_weights_that_give_nan_settle_nothing() -> None:
    model, encoded = make("llama"), ask()
    weight = model.model.layers[0].mlp.down_proj.weight
    kept = weight.detach().clone()
    weight.data.fill_(torch.nan)
    _, scorer, _ = scored(model, encoded, usable=None)
    assert scorer._last.usable is None
    weight.data.copy_(kept)
    with torch.inference_mode():
        scorer.score(model, pack(encoded, PACKING), len(encoded))
    assert scorer._last.usable is True
