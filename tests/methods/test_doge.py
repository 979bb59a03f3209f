"""DOGE."""

from __future__ import annotations

import pytest
import torch

from evomerge.errors import ConfigError
from evomerge.methods import METHODS
from evomerge.methods.doge import _descend, _shared
from tests.methods import formulas_beyond
from tests.methods.merging import merged, task_arithmetic, toy

WEIGHT = [0.9, 0.5, 1.2]


@pytest.mark.parametrize("shape", [(14, 20), (20, 14)])
@pytest.mark.parametrize("settings", [{}, {"eta": 0.5, "keep": 1.0, "subspace": 0.5, "steps": 50}])
def test_equals_torchs_gradients_and_adam(shape, settings) -> None:
    base, experts = toy(shape)
    expected = formulas_beyond.doge(base, experts, {"weight": WEIGHT}, **settings)
    found = merged("doge", base, experts, {"weight": WEIGHT}, **settings)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_the_change_helps_and_stays_out_of_the_shared_subspace() -> None:
    """Of the gradient; Adam's steps, entry by entry, hold to it only roughly."""
    base, experts = toy((14, 20))
    deltas = [e - base for e in experts]
    factors = [0.3 / float(d.norm()) for d in deltas]
    fixed = METHODS["doge"].fixed
    shared = _shared(deltas, 1 / 6)
    torch.testing.assert_close(shared.T @ shared, torch.eye(2, dtype=torch.float64))
    change = _descend(deltas, factors, shared, fixed)
    before = formulas_beyond.doge_loss(torch.zeros_like(change), deltas, factors)
    assert formulas_beyond.doge_loss(change, deltas, factors) < before
    everything = torch.eye(14, dtype=torch.float64)
    assert _descend(deltas, factors, everything, fixed).abs().max() < 1e-9


def test_without_steps_it_is_task_arithmetic_over_norms() -> None:
    base, experts = toy((14, 20))
    found = merged("doge", base, experts, {"weight": WEIGHT}, steps=0, keep=1.0)
    weights = [0.07 * w / float((e - base).norm()) for w, e in zip(WEIGHT, experts, strict=True)]
    torch.testing.assert_close(found, task_arithmetic(base, experts, weights))


def test_an_expert_without_a_change_stays_out() -> None:
    base, experts = toy((14, 20), k=2)
    found = merged("doge", base, [*experts, base], {"weight": [1.0] * 3}, subspace=0.0)
    without = merged("doge", base, experts, {"weight": [1.0] * 2}, subspace=0.0)
    torch.testing.assert_close(found, without)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match=r"fixed\.keep"):
        METHODS["doge"].survey(iter([]), {**METHODS["doge"].fixed, "keep": 0.0})
