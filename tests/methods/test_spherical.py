"""Methods on the sphere and the other tensor-wise ones: laws, and what sets them off mergekit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.methods import METHODS, Sources
from evomerge.methods.inner_products import gram, grams_along
from evomerge.methods.parts import add_task_vectors, wide_parts
from tests.methods.tensor_formulas import FORMULAS


def merge(
    name: str,
    base: torch.Tensor | None,
    experts: Sequence[torch.Tensor],
    fixed: dict[str, Any] | None = None,
    **coefficients: list[float],
) -> torch.Tensor:
    chosen = METHODS[name]
    settings = {**chosen.fixed, **(fixed or {})}
    basis = chosen.prepare(Sources("layers.0.w", base, experts), None, settings)
    out = torch.full_like(experts[0], float("nan"))
    chosen.combine(out, basis, coefficients, settings)
    return out


def tensors(n: int, shape: Sequence[int] = (6, 8), size: float = 1.0, seed: int = 0):
    random = torch.Generator().manual_seed(seed)
    base = torch.randn(tuple(shape), generator=random)
    return base, [base + size * torch.randn(tuple(shape), generator=random) for _ in range(n)]


# --------------------------------------------------------------------------- all of them


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(FORMULAS)),
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple),
    k=st.integers(2, 5),
    size=st.sampled_from([0.05, 0.5, 3.0]),
    data=st.data(),
)
def test_prepare_and_combine_equal_the_formula(name, shape, k, size, data) -> None:
    chosen = METHODS[name]
    k = chosen.n_experts[1] or k
    base, experts = tensors(max(k, 2), shape, size, data.draw(st.integers(0, 10**6)))
    c = {
        p: data.draw(
            st.lists(
                st.floats(about.low, about.high).map(lambda v: round(v, 3)),
                min_size=1 if about.shared else k,
                max_size=1 if about.shared else k,
            )
        )
        for p, about in chosen.parameters.items()
    }
    if sum(c.get("weight", [1.0])) < 0.1:
        return  # normalised weights that sum to zero are refused
    wide = [e.double() for e in experts]
    expected = FORMULAS[name](base.double(), wide, c)
    got = merge(name, base.double(), wide[:k], **c)
    scale = max(float(t.abs().max()) for t in (base, *experts))
    error = (got - expected)[expected.isfinite()].abs()  # 1 / 0 as published: opposed experts
    # karcher stops at an angle of 1e-5 on both sides
    assert (error <= (2e-5 if name == "karcher" else 1e-6) * scale).all()


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_no_copy_of_the_sources(name: str) -> None:
    base, experts = tensors(METHODS[name].n_experts[1] or 3, (40, 50))
    chosen = METHODS[name]
    basis = chosen.prepare(Sources("w", base, experts), None, chosen.fixed)
    owned = {t.data_ptr() for t in (base, *experts)}
    extra = [t for t in basis.tensors if t.data_ptr() not in owned]
    assert sum(t.numel() for t in extra) <= 40, "at most a number per row"


# --------------------------------------------------------------------------- the sphere


def test_slerp_keeps_the_length_where_lerp_does_not() -> None:
    _, (a, b) = tensors(2)
    b = b / b.norm() * a.norm()
    for t in (0.25, 0.5):
        assert float(merge("slerp", None, [a, b], t=[t]).norm()) == pytest.approx(
            float(a.norm()), rel=1e-6
        )
    assert float((0.5 * a + 0.5 * b).norm()) < 0.99 * float(a.norm())


def test_slerp_of_near_models_is_an_average_unless_told_otherwise() -> None:
    _, (a, b) = tensors(2, (30, 40), 0.01)
    b = b / b.norm() * a.norm()
    usual = merge("slerp", None, [a, b], t=[0.5])
    assert torch.allclose(usual, (a + b) / 2, rtol=1e-6, atol=1e-7)
    strict = merge("slerp", None, [a, b], {"lerp_above": 1.0}, t=[0.5])
    assert float(strict.double().norm()) == pytest.approx(float(a.double().norm()), rel=1e-7)
    assert float(usual.double().norm()) < float(a.double().norm()) * (1 - 1e-5)


@pytest.mark.parametrize("name", ["slerp", "nuslerp", "multislerp", "karcher"])
def test_odd_pairs_stay_finite(name: str) -> None:
    _, (a, _) = tensors(2)
    c = {"t": [0.5]} if name == "slerp" else {"weight": [0.5, 0.5]}
    zero = torch.zeros_like(a)
    for pair in ([a, -a], [a, zero], [zero, zero], [a, a], [a, 1e-30 * a]):
        assert torch.isfinite(merge(name, None, pair, **c)).all()
    assert torch.equal(merge(name, None, [zero, zero], **c), zero)


@pytest.mark.parametrize("row_wise", [False, True])
@pytest.mark.parametrize("task_vectors", [False, True])
def test_nuslerp_of_rows_and_columns(row_wise: bool, task_vectors: bool) -> None:
    base, (a, b) = tensors(2, (5, 7), 0.5)
    fixed = {"task_vectors": task_vectors}
    wise = {"nuslerp_flatten": False, "nuslerp_row_wise": row_wise}
    whole = merge("nuslerp", base, [a, b], fixed | wise, weight=[0.3, 0.6])
    dim = 1 if row_wise else 0  # mergekit calls it row-wise, and takes angles along dimension 0
    for i in range(whole.shape[dim]):
        parts = [t.select(dim, i).contiguous() for t in (base, a, b)]
        one = merge("nuslerp", parts[0], parts[1:], fixed, weight=[0.3, 0.6])
        assert torch.allclose(whole.select(dim, i), one, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["nuslerp", "multislerp"])
def test_task_vectors_need_a_base(name: str) -> None:
    _, pair = tensors(2)
    with pytest.raises(ConfigError, match="task_vectors needs a base model"):
        merge(name, None, pair, {"task_vectors": True}, weight=[0.5, 0.5])


def test_multislerp_of_experts_that_did_not_touch_a_tensor_is_the_base() -> None:
    """mergekit raises for three."""
    base, _ = tensors(1)
    three = [base.clone() for _ in range(3)]
    out = merge("multislerp", base, three, {"task_vectors": True}, weight=[0.2, 0.3, 0.9])
    assert torch.equal(out, base)


def test_multislerp_blows_small_task_vectors_up_without_cancellation() -> None:
    base, (a, b) = tensors(2, (30, 40), 1.0)
    a = base + 1e-4 * (a - base)  # beside b, its share is about 5000
    got = merge("multislerp", base, [a, b], {"task_vectors": True}, weight=[0.5, 0.5])
    deltas = [t.double() - base.double() for t in (a, b)]
    expected = base.double() + FORMULAS["multislerp"](None, deltas, {"weight": [0.5, 0.5]})
    assert (got - expected).abs().max() < 1e-6 * base.abs().max()


@pytest.mark.parametrize("name", ["multislerp", "karcher"])
def test_weights_that_cancel_are_refused(name: str) -> None:
    _, pair = tensors(2)
    with pytest.raises(ConfigError, match="sum to"):
        merge(name, None, pair, weight=[0.5, -0.5])


def test_karcher_is_where_the_squared_angles_are_least() -> None:
    _, experts = tensors(3, size=2.0)
    weights = [0.2, 0.5, 0.3]
    mean = merge("karcher", None, experts, {"tol": 1e-9, "max_iter": 100}, weight=weights)

    def cost(point: torch.Tensor) -> float:
        cosines = [(point * e).sum() / point.norm() / e.norm() for e in experts]
        return sum(w * float(torch.acos(c)) ** 2 for w, c in zip(weights, cosines, strict=True))

    random = torch.Generator().manual_seed(1)
    for _ in range(20):
        assert cost(mean) <= cost(mean + 0.05 * torch.randn(mean.shape, generator=random))


@pytest.mark.parametrize("seed", range(5))
def test_karcher_of_very_near_models_is_their_middle(seed: int) -> None:
    """mergekit's fp32 arccos passes over one of the two here in some seeds."""
    _, (a, b) = tensors(2, (64, 64), 2e-4, seed)
    got = merge("karcher", None, [a, b], weight=[0.5, 0.5])
    assert (got - (a + b) / 2).norm() < 0.01 * (a - b).norm()


# --------------------------------------------------------------------------- the others


def test_model_stock_of_rows() -> None:
    base, experts = tensors(3, (5, 7), 0.5)
    whole = merge("model_stock", base, experts, {"filter_wise": True}, **{"lambda": [0.8]})
    for i in range(5):
        row = merge("model_stock", base[i], [e[i] for e in experts], **{"lambda": [0.8]})
        assert torch.allclose(whole[i], row, rtol=1e-6, atol=1e-6)


def test_model_stock_of_equal_and_of_opposed_experts() -> None:
    base, (a, _) = tensors(2)
    agreed = merge("model_stock", base, [a, a.clone()], **{"lambda": [1.0]})
    assert torch.allclose(agreed, a, rtol=1e-6, atol=1e-6)
    opposed = merge("model_stock", base, [a, 2 * base - a], **{"lambda": [1.0]})
    assert torch.allclose(opposed, base, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "more"), [("model_stock", {}), ("sce", {"select_topk": [1.0]})])
def test_small_changes_need_no_floor(name: str, more: dict[str, list[float]]) -> None:
    """Scaled with the changes, the merge scales; mergekit's floor of 1e-6 breaks that."""
    base = torch.zeros(6, 8, dtype=torch.float64)
    _, experts = tensors(3)
    large = [e.double() for e in experts]
    small = [1e-5 * e for e in large]
    c = {"lambda": [1.0], **more}
    scaled = merge(name, base, large, **c) * 1e-5
    assert torch.allclose(merge(name, base, small, **c), scaled, rtol=1e-9, atol=0)
    floored = merge(name, base, small, {"floor": 1e-6}, **c)
    assert not torch.allclose(floored, scaled, rtol=1e-2, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("topk", [0.0, 0.01, 0.3, 0.999])
def test_sce_selects_the_right_number(topk: float, dtype: torch.dtype) -> None:
    """Over many pieces, and with the ties that narrow dtypes bring."""
    base, experts = tensors(3, (300, 500), 0.5)
    base, experts = base.to(dtype), [e.to(dtype) for e in experts]
    deltas = torch.stack([e.float() - base.float() for e in experts])
    variances = deltas.var(0, correction=0)
    n = int((variances > 0).sum() * topk)
    chosen = METHODS["sce"]
    basis = chosen.prepare(Sources("w", base, experts), None, chosen.fixed)
    out = torch.empty(base.shape)
    c = {"select_topk": [topk], "lambda": [1.0]}
    chosen.combine(out, basis, c, chosen.fixed)
    changed = int((out != base.float()).sum())
    ties = 0
    if n:
        threshold = variances.flatten().sort(descending=True).values[n - 1]
        ties = int((variances == threshold).sum()) - 1
    assert n - 2 <= changed <= n + ties  # two: an elected value may be exactly the base's


def test_sce_of_one_expert() -> None:
    """It has no variance: all of it, or nothing; as in mergekit."""
    base, (a,) = tensors(1)
    assert torch.allclose(merge("sce", base, [a], select_topk=[1.0], **{"lambda": [1.0]}), a)
    assert torch.equal(merge("sce", base, [a], select_topk=[0.5], **{"lambda": [1.0]}), base)


def test_arcee_fusion_samples_large_tensors_reproducibly() -> None:
    base, (a,) = tensors(1, (1100, 1000), 0.3)
    chosen = METHODS["arcee_fusion"]
    given = Sources("w", base, [a])
    quartiles = [chosen.prepare(given, None, chosen.fixed).extra for _ in range(2)]
    assert quartiles[0] == quartiles[1]
    divergence = chosen.prepare(given, None, chosen.fixed).tensors[2]
    exact = np.quantile(((a - base).abs() * divergence).numpy(), [0.25, 0.5, 0.75])
    assert quartiles[0] == pytest.approx(exact, rel=0.01)


def test_arcee_fusion_sees_small_changes() -> None:
    """A divergence is never negative; in fp32, as mergekit takes it, 39% of these are."""
    base, (a,) = tensors(1, (64, 1024), 0.01)
    base, a = 0.02 * base, 0.02 * a
    chosen = METHODS["arcee_fusion"]
    assert (chosen.prepare(Sources("w", base, [a]), None, chosen.fixed).tensors[2] > 0).all()
    out = merge("arcee_fusion", base, [a], spread=[1.5], **{"lambda": [1.0]})
    assert 0.02 < float((out != base).float().mean()) < 0.1


def test_arcee_fusion_knows_two_precisions() -> None:
    with pytest.raises(ConfigError, match=r"divergence is 'bf16'; expected float64, or float32"):
        METHODS["arcee_fusion"].survey(iter(()), {"divergence": "bf16"})


@pytest.mark.parametrize("name", ["nearswap", "ram", "ramplus_tl", "sce", "arcee_fusion"])
def test_a_base_is_asked_for_by_name(name: str) -> None:
    _, pair = tensors(2)
    with pytest.raises(ConfigError, match=f"{name} needs a base model"):
        METHODS[name].prepare(Sources("w", None, pair), None, METHODS[name].fixed)


# --------------------------------------------------------------------------- what they stand on


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gram(dtype: torch.dtype, device: torch.device) -> None:
    base, experts = tensors(3, (300, 400), 0.1)
    base, experts = base.to(device, dtype), [e.to(device, dtype) for e in experts]
    rows = torch.stack([(e.double() - base.double()).flatten() for e in experts])
    np.testing.assert_allclose(gram(experts, base), (rows @ rows.T).cpu().numpy(), rtol=1e-12)
    for dim in (0, -1):
        wide = torch.stack([e.double() for e in experts])
        expected = (wide[:, None] * wide[None]).sum(dim if dim < 0 else dim + 2, keepdim=True)
        assert torch.allclose(grams_along(experts, dim), expected.cpu(), rtol=1e-12)


def test_pieces_cover_a_tensor_once(device: torch.device) -> None:
    whole = torch.arange(200_001, device=device)
    seen = torch.zeros_like(whole)
    for part, (chunk,) in wide_parts([whole], torch.float64):
        seen[part] += 1
        assert torch.equal(chunk, whole[part].double())
    assert (seen == 1).all()


def test_add_task_vectors(device: torch.device) -> None:
    base, experts = (t.to(device) if torch.is_tensor(t) else t for t in tensors(2, (500, 300)))
    experts = [e.to(device) for e in experts]
    out = torch.empty_like(base)
    add_task_vectors(out, base, experts, [0.5, -2.0])
    expected = base + 0.5 * (experts[0] - base) - 2 * (experts[1] - base)
    assert torch.allclose(out, expected, rtol=1e-6, atol=1e-6)
