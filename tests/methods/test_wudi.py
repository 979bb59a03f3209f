"""WUDI."""

from __future__ import annotations

import pytest
import torch

from evomerge.errors import ConfigError
from evomerge.methods import METHODS
from tests.methods import formulas_beyond
from tests.methods.merging import merged, task_arithmetic, toy

ONES = {"weight": [1.0] * 3}
MINIMUM = {"time": 0.0, "keep": 1.0}


def loss(merge, base, experts):
    """What the method minimises."""
    delta = merge - base
    return sum(
        float((((delta - t) @ t.T) ** 2).sum() / (t**2).sum()) for t in (e - base for e in experts)
    )


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (8, 20), (12, 12)])
@pytest.mark.parametrize("settings", [MINIMUM, {"time": 3.0, "keep": 0.5}, {}])
def test_equals_the_naive_formula(shape, settings) -> None:
    base, experts = toy(shape)
    values = {"weight": [0.9, 0.5, 1.2]}
    expected = formulas_beyond.wudi(base, experts, values, **settings)
    found = merged("wudi", base, experts, values, **settings)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(20, 30), (12, 60)])
def test_is_no_worse_than_descent(shape) -> None:
    """The released code takes steps of Adam from the sum of the task vectors."""
    base, experts = toy(shape)
    deltas = [e - base for e in experts]
    descended = sum(deltas).clone().requires_grad_()
    adam = torch.optim.Adam([descended], lr=1e-3)
    for _ in range(500):
        adam.zero_grad()
        value = sum((((descended - t) @ t.T) ** 2).sum() / (t**2).sum() for t in deltas)
        value.backward()
        adam.step()
    start = loss(base + sum(deltas), base, experts)
    closed = loss(merged("wudi", base, experts, ONES, **MINIMUM), base, experts)
    reached = loss(base + descended.detach(), base, experts)
    assert closed <= reached * (1 + 1e-9)
    assert reached < start


def test_experts_with_inputs_of_their_own_are_all_kept() -> None:
    """Orthogonal row spaces: every expert's outputs on its own inputs are untouched."""
    base, _ = toy((6, 12))
    experts = []
    for i in range(3):
        delta = torch.zeros_like(base)
        delta[:, 4 * i : 4 * i + 4] = toy((6, 4), seed=i)[0]
        experts.append(base + delta)
    torch.testing.assert_close(
        merged("wudi", base, experts, ONES, **MINIMUM),
        task_arithmetic(base, experts, [1.0] * 3),
        rtol=1e-7,
        atol=1e-7,
    )


def test_equal_experts_are_that_expert() -> None:
    base, experts = toy((6, 12), k=1)
    torch.testing.assert_close(
        merged("wudi", base, experts * 3, ONES, **MINIMUM), experts[0], rtol=1e-7, atol=1e-7
    )


def test_an_expert_without_a_change_has_no_say() -> None:
    base, experts = toy((6, 12), k=2)
    both = merged("wudi", base, [*experts, base], ONES)
    torch.testing.assert_close(both, merged("wudi", base, experts, {"weight": [1.0, 1.0]}))


def test_no_time_at_all_is_the_sum() -> None:
    base, experts = toy((20, 12))
    early = merged("wudi", base, experts, ONES, time=1e-9)
    torch.testing.assert_close(early, task_arithmetic(base, experts, [1.0] * 3))


def test_is_gradient_flow() -> None:
    """Small steps down half the loss's gradient for a time, in the directions that are kept."""
    base, experts = toy((20, 12))
    time, n = 2.0, 4000
    deltas = [e - base for e in experts]
    grams = [d.T @ d / (d**2).sum() for d in deltas]
    vectors = torch.linalg.eigh(sum(grams)).eigenvectors[:, 12 - 9 :]
    x = sum(deltas)
    for _ in range(n):
        slope = sum((x - d) @ g for d, g in zip(deltas, grams, strict=True))
        x = x - time / n * slope @ vectors @ vectors.T
    found = merged("wudi", base, experts, ONES, time=time, keep=0.75)
    torch.testing.assert_close(found - base, x, rtol=1e-3, atol=1e-3)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match=r"fixed\.keep"):
        METHODS["wudi"].survey(iter([]), {**METHODS["wudi"].fixed, "keep": 0.0})
