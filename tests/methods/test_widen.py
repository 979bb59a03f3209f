"""WIDEN."""

from __future__ import annotations

import pytest
import torch

from tests.methods import formulas_beyond
from tests.methods.merging import merged, prepared, task_arithmetic, toy

WEIGHT = [0.9, 0.5, 1.2]


@pytest.mark.parametrize("shape", [(8, 12), (30,)])
@pytest.mark.parametrize(("ratio", "calibration"), [(1.0, 1.0), (0.5, 0.3), (2.0, 0.0)])
def test_equals_the_naive_formula(shape, ratio, calibration) -> None:
    base, experts = toy(shape)
    settings = {"ratio": ratio, "calibration": calibration}
    expected = formulas_beyond.widen(base, experts, {"weight": WEIGHT}, **settings)
    found = merged("widen", base, experts, {"weight": WEIGHT}, **settings)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("shape", [(8, 12), (30,), (3, 4, 5), ()])
def test_everything_important_is_task_arithmetic(shape) -> None:
    base, experts = toy(shape)
    found = merged("widen", base, experts, {"weight": WEIGHT}, ratio=-1.0, calibration=1.0)
    torch.testing.assert_close(found, task_arithmetic(base, experts, WEIGHT))


def test_nothing_important_shares_by_rank() -> None:
    base, experts = toy((8, 12))
    directions = prepared("widen", base, experts, ratio=1e9).tensors[1:]
    shares = sum(d / (e - base) for d, e in zip(directions, experts, strict=True))
    torch.testing.assert_close(shares, torch.ones_like(shares))


def test_tables_of_tokens_are_scored_by_row() -> None:
    base, experts = toy((12, 8))
    table = merged("widen", base, experts, {"weight": WEIGHT}, "model.embed_tokens.weight")
    turned = merged("widen", base.T.contiguous(), [e.T for e in experts], {"weight": WEIGHT})
    torch.testing.assert_close(table, turned.T)


def test_convolutions_are_flattened() -> None:
    base, experts = toy((6, 3, 4))
    whole = merged("widen", base, experts, {"weight": WEIGHT})
    flat = merged("widen", base.flatten(1), [e.flatten(1) for e in experts], {"weight": WEIGHT})
    torch.testing.assert_close(whole.flatten(1), flat)


def test_columns_of_zeros_have_no_direction_and_no_nan() -> None:
    base, experts = toy((6, 4))
    base[:, 0] = 0
    experts[0][:, 0] = 0
    found = merged("widen", base, experts, {"weight": WEIGHT})
    assert torch.isfinite(found).all()
