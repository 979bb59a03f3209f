"""The contract of a merge method; walks METHODS, so a new method is tested as it is listed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError, UnknownNameError
from evomerge.methods import METHODS, MergeMethod, Sources, method
from evomerge.methods.kernels import CHUNK, weighted_sum
from tests.methods import formulas_beyond, sparse_formulas, tensor_formulas

# The formula of each method in float64: (base, experts, coefficients) -> merge. NaN where rounding
# decides.
FORMULAS = {
    "linear": lambda base, experts, c: (
        sum(w * e for w, e in zip(c["weight"], experts, strict=True)) / sum(c["weight"])
    ),
    "task_arithmetic": lambda base, experts, c: (
        base + sum(w * (e - base) for w, e in zip(c["weight"], experts, strict=True))
    ),
    **sparse_formulas.FORMULAS,
    **tensor_formulas.FORMULAS,
    **formulas_beyond.FORMULAS,
}
# base [1, 2], experts [3, 2] and [1, 6], weight [.5, .25], by hand; other parameters as below.
BY_HAND = {
    "linear": [7 / 3, 10 / 3],
    "task_arithmetic": [2.0, 3.0],
    "ties": [3.0, 6.0],
    "dare_linear": [2.0, 3.0],
    "dare_ties": [3.0, 4.0],
    "della": [2.0, 4.0],
    "della_linear": [2.0, 3.0],
    "breadcrumbs": [2.0, 3.0],
    "breadcrumbs_ties": [1.0, 2.0],
    **tensor_formulas.BY_HAND,
    **formulas_beyond.BY_HAND,
}
OTHERS_BY_HAND: dict[str, dict[str, list[float]]] = {
    "ties": {"density": [0.5, 0.5], "lambda": [1.0]},
    "dare_linear": {"density": [1.0, 1.0], "lambda": [1.0]},
    "dare_ties": {"density": [1.0, 1.0], "lambda": [2.0]},
    "della": {"density": [1.0, 1.0], "lambda": [0.5], "epsilon": [0.1]},
    "della_linear": {"density": [1.0, 1.0], "lambda": [1.0], "epsilon": [0.1]},
    "breadcrumbs": {"density": [0.5, 0.5], "lambda": [1.0], "gamma": [0.0]},
    "breadcrumbs_ties": {"density": [0.5, 0.5], "lambda": [1.0], "gamma": [0.5]},
    **tensor_formulas.OTHERS_BY_HAND,
    **formulas_beyond.OTHERS_BY_HAND,
}
# What a method makes of equal sources, where that is not the base: (base, c) -> merge.
OF_EQUAL_SOURCES = {"passthrough": lambda base, c: c["scale"][0] * base}

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.fixture(params=sorted(METHODS))
def chosen(request: pytest.FixtureRequest) -> MergeMethod:
    return METHODS[request.param]


def sources(
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    shape: Sequence[int] = (5, 7),
    k: int = 3,
    seed: int = 0,
) -> Sources:
    random = torch.Generator().manual_seed(seed)
    base = torch.randn(tuple(shape), generator=random, dtype=torch.float64)
    experts = [
        base + 0.1 * torch.randn(tuple(shape), generator=random, dtype=torch.float64)
        for _ in range(k)
    ]
    return Sources(
        "layers.0.mlp.weight", base.to(device, dtype), [e.to(device, dtype) for e in experts]
    )


def coefficients(chosen: MergeMethod, k: int, seed: int = 0) -> dict[str, list[float]]:
    """Values inside the default bounds of every parameter."""
    random = torch.Generator().manual_seed(seed)
    values = {}
    for name, p in chosen.parameters.items():
        u = torch.rand(1 if p.shared else k, generator=random, dtype=torch.float64)
        values[name] = (p.low + (0.1 + 0.8 * u) * (p.high - p.low)).tolist()
    return values


def merge(
    chosen: MergeMethod,
    given: Sources,
    values: Mapping[str, Sequence[float]],
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    most = chosen.n_experts[1] or len(given.experts)  # the method's first ones, where it limits
    given = dataclasses.replace(given, experts=given.experts[:most])
    values = {name: list(v)[:most] for name, v in values.items()}
    first = given.experts[0]
    out = torch.full(first.shape, float("nan"), dtype=dtype or first.dtype, device=first.device)
    fixed = dict(chosen.fixed)
    survey = chosen.survey(iter([given]), fixed)
    basis = chosen.prepare(given, survey, fixed)
    chosen.combine(out, basis, values, fixed)
    return out


def test_is_listed_under_its_name(chosen: MergeMethod) -> None:
    assert METHODS[chosen.name] is chosen is method(chosen.name)
    assert chosen.parameters
    for parameter in chosen.parameters.values():
        assert parameter.low <= parameter.default <= parameter.high
        assert parameter.doc
    assert chosen.name in FORMULAS, "give the new method its formula here"
    assert chosen.name in BY_HAND, "give the new method a value computed by hand here"


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_sources_equal_gives_the_base(
    chosen: MergeMethod, dtype: torch.dtype, device: torch.device
) -> None:
    base = sources(device, dtype).base
    assert base is not None
    given = Sources("w", base, [base.clone() for _ in range(3)])
    values = coefficients(chosen, 3)
    out = merge(chosen, given, values)
    expected = OF_EQUAL_SOURCES.get(chosen.name, lambda base, c: base)(base.double(), values)
    eps = torch.finfo(dtype).eps
    assert torch.allclose(out.double(), expected, rtol=4 * eps, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 7), (3,), (1,), (), (2, 3, 4), (0, 3)])
def test_writes_in_place_and_keeps_shape_dtype_device(
    chosen: MergeMethod, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device
) -> None:
    given = sources(device, dtype, shape, k=2)
    out = merge(chosen, given, coefficients(chosen, 2))
    assert (out.shape, out.dtype, out.device.type) == (torch.Size(shape), dtype, device.type)
    assert torch.isfinite(out).all()


def test_is_pure(chosen: MergeMethod, device: torch.device) -> None:
    given = sources(device)
    assert given.base is not None
    copies = [given.base.clone(), *(e.clone() for e in given.experts)]
    values = coefficients(chosen, 3)
    before = {k: list(v) for k, v in values.items()}
    torch.manual_seed(0)
    first = merge(chosen, given, values)
    merge(chosen, given, coefficients(chosen, 3, seed=9))
    torch.manual_seed(1)
    assert torch.equal(first, merge(chosen, given, values))
    assert values == before
    for tensor, copy in zip([given.base, *given.experts], copies, strict=True):
        assert torch.equal(tensor, copy)


def test_does_not_read_what_out_held(chosen: MergeMethod, device: torch.device) -> None:
    """``merge`` starts from NaN; nothing of it may survive."""
    assert torch.isfinite(merge(chosen, sources(device), coefficients(chosen, 3))).all()


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_formula(chosen: MergeMethod, seed: int, device: torch.device) -> None:
    given = sources(device, seed=seed)
    values = coefficients(chosen, 3, seed)
    assert given.base is not None
    expected = FORMULAS[chosen.name](
        given.base.double(), [e.double() for e in given.experts], values
    )
    assert_agree(merge(chosen, given, values), expected)


def assert_agree(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal up to fp32 rounding, wherever rounding does not decide what the formula gives."""
    sure = expected.isfinite()
    assert got.isfinite().all()
    assert torch.allclose(got.double()[sure], expected[sure], rtol=2e-6, atol=2e-6)


@st.composite
def problems(draw: st.DrawFn, chosen: MergeMethod) -> tuple[Sources, dict[str, list[float]]]:
    """Any shape, dtype and number of experts; task vectors with equal entries and zeros."""
    shape = tuple(draw(st.lists(st.sampled_from([0, 1, 2, 3, 7, 40]), max_size=3)))
    fewest, most = chosen.n_experts
    dtype, k = draw(st.sampled_from(DTYPES)), draw(st.integers(fewest, min(most or 5, 5)))
    given = sources(torch.device("cpu"), dtype, shape, k, seed=draw(st.integers(0, 99)))
    assert given.base is not None
    experts = list(given.experts)
    odd = draw(st.sampled_from(["", "base", "constant", "coarse"]))
    if odd == "base":
        experts[0] = given.base.clone()
    elif odd == "constant":
        experts[-1] = given.base + 0.5
    elif odd == "coarse":
        experts[0] = given.base + (4 * (experts[0] - given.base)).round() / 4
    values = {}
    for name, p in chosen.parameters.items():
        inside = st.floats(p.low + 1e-3 * (p.high - p.low), p.high)
        n = 1 if p.shared else k
        values[name] = draw(
            st.lists(inside | st.sampled_from([p.default]), min_size=n, max_size=n)
        )
    return Sources(given.name, given.base, experts), values


# Those of formulas_beyond rank, decompose and divide: their formulas hold for tensors in general
# position, which test_equals_the_formula draws; their own tests have the degenerate ones.
@pytest.mark.parametrize("name", sorted(set(METHODS) - set(formulas_beyond.FORMULAS)))
@settings(max_examples=60, deadline=None, derandomize=True)
@drawn(data=st.data())
def test_equals_the_formula_for_any_input(data: st.DataObject, name: str) -> None:
    chosen = METHODS[name]
    given, values = data.draw(problems(chosen))
    assert given.base is not None
    base, experts = given.base.double(), [e.double() for e in given.experts]
    wide = torch.float64 if given.base.dtype == torch.float64 else torch.float32
    assert_agree(merge(chosen, given, values, wide), FORMULAS[chosen.name](base, experts, values))


@pytest.mark.parametrize("name", sorted(formulas_beyond.FORMULAS))
@settings(max_examples=40, deadline=None, derandomize=True)
@drawn(data=st.data())
def test_any_input_gives_finite_weights(data: st.DataObject, name: str) -> None:
    given, values = data.draw(problems(METHODS[name]))
    assert given.base is not None
    out = merge(METHODS[name], given, values, torch.float32)
    assert out.shape == given.base.shape
    assert out.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_output_is_rounded_once(
    chosen: MergeMethod, dtype: torch.dtype, device: torch.device
) -> None:
    given = sources(device, dtype, (40, 50))
    values = coefficients(chosen, 3)
    wide = merge(chosen, given, values, torch.float32)
    narrow = merge(chosen, given, values)
    # fp32 sums may differ in their last bit by order, so a tie may fall either way: not 100%.
    same = (narrow == wide.to(dtype)).double().mean()
    assert same > 0.995


def test_by_hand(chosen: MergeMethod, device: torch.device) -> None:
    given = Sources(
        "w",
        torch.tensor([1.0, 2.0], device=device),
        [torch.tensor([3.0, 2.0], device=device), torch.tensor([1.0, 6.0], device=device)],
    )
    values = {"weight": [0.5, 0.25], **OTHERS_BY_HAND.get(chosen.name, {})}
    out = merge(chosen, given, values)
    assert out.tolist() == pytest.approx(BY_HAND[chosen.name], rel=1e-6)


def test_base_is_required_where_needed(chosen: MergeMethod) -> None:
    given = Sources("w", None, [torch.zeros(2), torch.ones(2)])
    if chosen.needs_base:
        with pytest.raises(ConfigError, match="base"):
            chosen.prepare(given, None, chosen.fixed)
    else:
        assert torch.isfinite(merge(chosen, given, coefficients(chosen, 2))).all()


def test_linear_refuses_weights_that_cancel() -> None:
    given = Sources("w", None, [torch.zeros(2), torch.ones(2)])
    with pytest.raises(ConfigError, match="sum to 0"):
        merge(METHODS["linear"], given, {"weight": [0.5, -0.5]})


def test_unknown_method() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'linear'"):
        method("liner")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, CHUNK - 1, CHUNK + 3])
def test_weighted_sum_in_chunks(n: int, dtype: torch.dtype, device: torch.device) -> None:
    random = torch.Generator().manual_seed(n)
    tensors = [torch.randn(n, generator=random).to(device, dtype) for _ in range(2)]
    out = torch.full((n,), float("nan"), dtype=dtype, device=device)
    weighted_sum(out, tensors, [0.75, -1.5])
    expected = 0.75 * tensors[0].double() - 1.5 * tensors[1].double()
    eps = max(torch.finfo(dtype).eps, 2e-7)
    assert torch.allclose(out.double(), expected, rtol=eps, atol=4 * eps)


def test_weighted_sum_without_terms_is_zero(device: torch.device) -> None:
    out = torch.ones(3, device=device)
    weighted_sum(out, [torch.full((3,), float("inf"), device=device)], [0.0])
    assert out.tolist() == [0.0, 0.0, 0.0]


def test_weighted_sum_mixes_dtypes(device: torch.device) -> None:
    out = torch.empty(2, device=device)
    narrow = torch.tensor([1.0, 2.0], dtype=torch.bfloat16, device=device)
    weighted_sum(out, [narrow, torch.ones(2, dtype=torch.float64, device=device)], [2.0, 1.0])
    assert out.tolist() == [3.0, 5.0]
