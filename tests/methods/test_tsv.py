"""Task singular vectors."""

from __future__ import annotations

import pytest
import torch

from evomerge.errors import ConfigError
from evomerge.methods import METHODS
from tests.methods import formulas_beyond
from tests.methods.merging import merged, prepared, task_arithmetic, toy

WEIGHT = [0.9, 0.5, 1.3]


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (9, 9)])
def test_equals_the_naive_formula(shape) -> None:
    base, experts = toy(shape)
    expected = formulas_beyond.tsv(base, experts, {"weight": WEIGHT})
    torch.testing.assert_close(
        merged("tsv", base, experts, {"weight": WEIGHT}), expected, rtol=1e-10, atol=1e-10
    )


def test_orthogonal_subspaces_give_the_sum_of_task_vectors() -> None:
    """Three experts of rank 2 each, with left and right vectors of their own."""
    base, _ = toy((9, 14))
    left = torch.linalg.qr(toy((9, 9), seed=1)[0]).Q
    right = torch.linalg.qr(toy((14, 14), seed=2)[0]).Q
    experts = []
    for i in range(3):
        own = slice(2 * i, 2 * i + 2)
        values = torch.diag(torch.tensor([0.3 + i, 0.1], dtype=torch.float64))
        experts.append(base + left[:, own] @ values @ right[:, own].T)
    torch.testing.assert_close(
        merged("tsv", base, experts, {"weight": WEIGHT}), task_arithmetic(base, experts, WEIGHT)
    )


def test_one_expert_at_full_rank_is_task_arithmetic() -> None:
    base, experts = toy((7, 11), k=1)
    torch.testing.assert_close(
        merged("tsv", base, experts, {"weight": [0.7]}), task_arithmetic(base, experts, [0.7])
    )


def test_equal_experts_are_counted_once() -> None:
    """Their vectors side by side have half the rank: a polar factor by singular value
    decomposition would fill up with vectors of its own choice."""
    base, experts = toy((8, 10), k=1)
    twice = merged("tsv", base, experts * 2, {"weight": [1.0, 1.0]}, rank_fraction=1.0)
    torch.testing.assert_close(twice, experts[0])


def test_does_not_depend_on_the_signs_of_singular_vectors(monkeypatch) -> None:
    base, experts = toy((8, 10))
    before = merged("tsv", base, experts, {"weight": WEIGHT})
    eigh = torch.linalg.eigh

    def other_signs(a):
        values, vectors = eigh(a)
        return values, vectors * torch.where(torch.arange(len(values)) % 2 == 0, 1.0, -1.0)

    monkeypatch.setattr(torch.linalg, "eigh", other_signs)
    torch.testing.assert_close(merged("tsv", base, experts, {"weight": WEIGHT}), before)


def test_is_linear_in_the_weights() -> None:
    base, experts = toy((8, 10))
    one, two = (merged("tsv", base, experts, {"weight": [s * w for w in WEIGHT]}) for s in (1, 2))
    torch.testing.assert_close(two - base, 2 * (one - base))


@pytest.mark.parametrize("shape", [(1, 6), (2, 5)])
def test_matrices_with_fewer_rows_than_experts_keep_a_direction(shape) -> None:
    base, experts = toy(shape)
    assert not torch.allclose(merged("tsv", base, experts, {"weight": WEIGHT}), base)


def test_an_expert_without_a_change_takes_no_room() -> None:
    base, experts = toy((8, 10), k=1)
    with_idle = merged("tsv", base, [*experts, base], {"weight": [1, 1]}, rank_fraction=0.5)
    alone = merged("tsv", base, experts, {"weight": [1.0]}, rank_fraction=0.5)
    torch.testing.assert_close(with_idle, alone)


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight", "wte.weight"])
def test_embeddings_and_heads_take_the_mean_unless_asked(name) -> None:
    base, experts = toy((8, 10))
    mean = task_arithmetic(base, experts, [w / 3 for w in WEIGHT])
    torch.testing.assert_close(merged("tsv", base, experts, {"weight": WEIGHT}, name), mean)
    asked = merged("tsv", base, experts, {"weight": WEIGHT}, name, embeddings=True)
    torch.testing.assert_close(asked, merged("tsv", base, experts, {"weight": WEIGHT}))


def test_plain_tensors_are_not_copied() -> None:
    base, experts = toy((8,))
    basis = prepared("tsv", base, experts)
    assert [t.data_ptr() for t in basis.tensors] == [t.data_ptr() for t in (base, *experts)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_directions_take_as_many_bytes_as_the_experts(dtype) -> None:
    base, experts = toy((8, 10), dtype=dtype)
    assert {t.dtype for t in prepared("tsv", base, experts).tensors} == {dtype}


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="rank_fraction"):
        METHODS["tsv"].survey(iter([]), {"rank_fraction": 1.5})
