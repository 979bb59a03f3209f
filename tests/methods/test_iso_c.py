"""Isotropic merging."""

from __future__ import annotations

import pytest
import torch

from tests.methods.merging import merged, prepared, task_arithmetic, toy


@pytest.mark.parametrize("shape", [(8, 12), (12, 8)])
def test_all_singular_values_are_the_mean(shape) -> None:
    base, experts = toy(shape)
    total = sum(e - base for e in experts)
    found = merged("iso_c", base, experts, {"scale": [1.0]}) - base
    values = torch.linalg.svdvals(found)
    torch.testing.assert_close(values, torch.linalg.svdvals(total).mean().expand(8))
    symmetric = found.T @ total  # V S' S V^T: the same right vectors
    torch.testing.assert_close(symmetric, symmetric.T)


def test_directions_that_the_sum_lacks_stay_zero() -> None:
    base, _ = toy((8, 12))
    column = toy((8, 1), seed=1)[0]
    experts = [base + column @ toy((1, 12), seed=s)[0] for s in (2, 3)]
    found = merged("iso_c", base, experts, {"scale": [1.0]}) - base
    assert torch.linalg.matrix_rank(found, rtol=1e-6) == 1
    total = sum(e - base for e in experts)
    torch.testing.assert_close(found, total / 8)  # one singular value, the mean of eight


def test_one_direction_whatever_the_number_of_experts() -> None:
    base, experts = toy((8, 12))
    assert len(prepared("iso_c", base, experts).tensors) == 2


def test_vectors_take_the_mean() -> None:
    base, experts = toy((8,))
    found = merged("iso_c", base, experts, {"scale": [0.9]})
    torch.testing.assert_close(found, task_arithmetic(base, experts, [0.3] * 3))
