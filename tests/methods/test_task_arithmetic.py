"""Task arithmetic with task vectors of equal length."""

from __future__ import annotations

import pytest
import torch

from evomerge.errors import UnknownNameError
from evomerge.methods import METHODS
from tests.methods.merging import merged, task_arithmetic, toy

WEIGHT = [0.9, 0.5, 0.2]


def test_equal_norms_move_equally_far() -> None:
    base, experts = toy((8, 10))
    experts[1] = base + 50 * (experts[1] - base)
    mean = sum((e - base).norm() for e in experts) / 3
    for i in range(3):
        alone = [1.0 if j == i else 0.0 for j in range(3)]
        moved = merged("task_arithmetic", base, experts, {"weight": alone}, norms="equal") - base
        torch.testing.assert_close(moved.norm(), mean)
        torch.testing.assert_close(moved / moved.norm(), (d := experts[i] - base) / d.norm())


def test_equals_the_formula() -> None:
    base, experts = toy((8, 10))
    lengths = [float((e - base).norm()) for e in experts]
    weights = [w * sum(lengths) / 3 / n for w, n in zip(WEIGHT, lengths, strict=True)]
    torch.testing.assert_close(
        merged("task_arithmetic", base, experts, {"weight": WEIGHT}, norms="equal"),
        task_arithmetic(base, experts, weights),
    )


@pytest.mark.parametrize("shape", [(8, 10), (1,), (), (0, 3)])
def test_an_expert_without_a_change_stays_out(shape) -> None:
    base, experts = toy(shape, k=1)
    values = {"weight": [1.0, 1.0]}
    found = merged("task_arithmetic", base, [*experts, base], values, norms="equal")
    torch.testing.assert_close(found, task_arithmetic(base, experts, [0.5]))


def test_unknown_norms_are_named() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'equal'"):
        METHODS["task_arithmetic"].survey(iter([]), {"norms": "equals"})
