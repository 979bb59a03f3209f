"""Localize-and-Stitch without data."""

from __future__ import annotations

import pytest
import torch

from evomerge.errors import ConfigError
from evomerge.methods import METHODS, Sources
from tests.methods import formulas_beyond
from tests.methods.merging import merged, prepared, task_arithmetic, toy

WEIGHT = [0.9, 0.5, 1.2]


@pytest.mark.parametrize("density", [0.01, 0.1, 0.5, 1.0])
def test_equals_the_naive_formula(density) -> None:
    base, experts = toy((30, 40), dtype=torch.float32)
    expected = formulas_beyond.localize_stitch(base, experts, {"weight": WEIGHT}, density)
    found = merged("localize_stitch", base, experts, {"weight": WEIGHT}, density=density)
    torch.testing.assert_close(found, expected)


def test_shares_add_up_to_one_where_anyone_keeps_an_entry() -> None:
    base, experts = toy((30, 40))
    directions = prepared("localize_stitch", base, experts, density=0.3).tensors[1:]
    shares = sum(d / (e - base) for d, e in zip(directions, experts, strict=True))
    assert ((shares - 1).abs() < 1e-12).logical_or(shares == 0).all()
    assert 0.3 < float((shares > 0.5).double().mean()) < 0.9


def test_full_density_is_the_mean() -> None:
    base, experts = toy((8, 10))
    found = merged("localize_stitch", base, experts, {"weight": WEIGHT}, density=1.0)
    torch.testing.assert_close(found, task_arithmetic(base, experts, [w / 3 for w in WEIGHT]))


def test_an_expert_that_changed_little_does_not_dilute_the_others() -> None:
    base, experts = toy((100,), k=2)
    quiet = base.clone()
    quiet[0] = experts[0][0]
    found = merged(
        "localize_stitch", base, [experts[0], quiet], {"weight": [1.0] * 2}, density=1.0
    )
    torch.testing.assert_close(found, experts[0])


def test_thresholds_are_of_the_whole_model() -> None:
    """An expert whose large changes lie in one tensor keeps nothing of the other."""
    chosen = METHODS["localize_stitch"]
    fixed = {"density": 0.5}
    base = torch.zeros(10)
    tensors = [
        Sources("large", base, [torch.arange(10.0) + 1]),
        Sources("small", base, [torch.full((10,), 0.5)]),
    ]
    survey = chosen.survey(iter(tensors), fixed)
    large, small = (chosen.prepare(t, survey, fixed).tensors[1] for t in tensors)
    assert large.tolist() == tensors[0].experts[0].tolist()
    assert small.tolist() == [0.0] * 10


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="density"):
        METHODS["localize_stitch"].survey(iter([]), {"density": 0.0})
