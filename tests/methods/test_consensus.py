"""Consensus merging."""

from __future__ import annotations

import pytest
import torch

from evomerge.errors import ConfigError
from evomerge.methods import METHODS
from tests.methods import formulas_beyond
from tests.methods.merging import merged, task_arithmetic, toy

WEIGHT = [0.9, 0.5, 0.2]


@pytest.mark.parametrize("threshold", [0.2, 0.6])
@pytest.mark.parametrize("min_experts", [1, 2, 3])
def test_equals_the_naive_formula(threshold, min_experts) -> None:
    base, experts = toy((4, 5, 6))
    settings = {"threshold": threshold, "min_experts": min_experts}
    expected = formulas_beyond.consensus(base, experts, {"weight": WEIGHT}, **settings)
    found = merged("consensus", base, experts, {"weight": WEIGHT}, **settings)
    torch.testing.assert_close(found, expected)


def _disjoint() -> tuple[torch.Tensor, list[torch.Tensor]]:
    base, experts = toy((90,))
    for i, expert in enumerate(experts):
        mine = torch.arange(90) % 3 == i
        expert[~mine] = base[~mine]
    return base, experts


def test_disjoint_supports_are_recovered_exactly() -> None:
    base, experts = _disjoint()
    found = merged("consensus", base, experts, {"weight": [1.0] * 3}, min_experts=1)
    torch.testing.assert_close(found, task_arithmetic(base, experts, [1.0] * 3))
    for i, expert in enumerate(experts):
        mine = torch.arange(90) % 3 == i
        torch.testing.assert_close(found[mine], expert[mine])


def test_selfish_weights_stay_at_the_base() -> None:
    base, experts = _disjoint()
    found = merged("consensus", base, experts, {"weight": [1.0] * 3}, min_experts=2)
    assert torch.equal(found, base)


def test_the_ends_are_task_arithmetic_and_the_base() -> None:
    base, experts = toy((8, 10))
    everything = merged("consensus", base, experts, {"weight": WEIGHT}, min_experts=0)
    torch.testing.assert_close(everything, task_arithmetic(base, experts, WEIGHT))
    nothing = merged("consensus", base, experts, {"weight": WEIGHT}, min_experts=4)
    assert torch.equal(nothing, base)


def test_a_lower_threshold_keeps_more() -> None:
    base, experts = toy((40, 50))
    kept = [
        int((merged("consensus", base, experts, {"weight": WEIGHT}, threshold=t) != base).sum())
        for t in (0.0, 0.2, 0.4, 0.8, 3.0)
    ]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == 2000 > kept[-1]


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="threshold"):
        METHODS["consensus"].survey(iter([]), {"threshold": -1.0})
