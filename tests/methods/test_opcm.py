"""OPCM."""

from __future__ import annotations

import pytest
import torch

from evomerge.errors import ConfigError
from evomerge.methods import METHODS
from tests.methods import formulas_beyond
from tests.methods.merging import merged, prepared, task_arithmetic, toy

WEIGHT = [0.9, 0.5, 1.2]


@pytest.mark.parametrize("shape", [(8, 12), (12, 8), (9, 9)])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
def test_equals_the_naive_formula(shape, alpha) -> None:
    base, experts = toy(shape)
    expected = formulas_beyond.opcm(base, experts, {"weight": WEIGHT}, alpha)
    torch.testing.assert_close(
        merged("opcm", base, experts, {"weight": WEIGHT}, alpha=alpha), expected
    )


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_what_is_added_is_orthogonal_to_what_is_there(alpha) -> None:
    base, experts = toy((8, 12))
    directions = prepared("opcm", base, experts, alpha=alpha).tensors[1:]
    for i in (1, 2):
        before = sum(directions[:i])
        cosine = (directions[i] * before).sum() / directions[i].norm() / before.norm()
        assert abs(float(cosine)) < 1e-10


@pytest.mark.parametrize("shape", [(8, 12), (20,), (3, 4, 5)])
def test_the_merge_has_the_mean_length(shape) -> None:
    base, experts = toy(shape)
    found = merged("opcm", base, experts, {"weight": [1.0] * 3}) - base
    mean = sum(float((e - base).norm()) for e in experts) / 3
    assert float(found.norm()) == pytest.approx(mean)


def test_order_matters_and_one_expert_is_itself() -> None:
    base, experts = toy((8, 12))
    forth = merged("opcm", base, experts, {"weight": [1.0] * 3})
    back = merged("opcm", base, experts[::-1], {"weight": [1.0] * 3})
    assert not torch.allclose(forth, back)
    torch.testing.assert_close(
        merged("opcm", base, experts[:1], {"weight": [0.7]}),
        task_arithmetic(base, experts[:1], [0.7]),
    )


@pytest.mark.parametrize("shape", [(6,), (4, 6)])
def test_task_vectors_that_cancel_give_the_base(shape) -> None:
    base, experts = toy(shape, k=1)
    found = merged("opcm", base, [experts[0], 2 * base - experts[0]], {"weight": [1.0, 1.0]})
    assert torch.isfinite(found).all()
    if len(shape) == 1:
        torch.testing.assert_close(found, base)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="alpha"):
        METHODS["opcm"].survey(iter([]), {"alpha": 2.0})
