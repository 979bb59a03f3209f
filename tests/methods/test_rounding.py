"""Dithered rounding: unbiased, idempotent, between neighbours; and part of what a recipe means."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.methods.kernels import weighted_sum
from evomerge.methods.rounding import NARROW, dither_into

MANY = 1 << 14
LAST_PLACE = {torch.bfloat16: (7, -126), torch.float16: (10, -14)}  # mantissa bits, min exponent


def dithered(exact: torch.Tensor, dtype: torch.dtype, name: str = "w") -> torch.Tensor:
    out = torch.full_like(exact, float("nan"), dtype=dtype)
    dither_into(out, exact, name)
    return out


def unit(value: float, dtype: torch.dtype) -> float:
    """The distance between the dtype's neighbours around a value, from the definition."""
    bits, lowest = LAST_PLACE[dtype]
    exponent = math.frexp(value)[1] - 1 if value else lowest
    return 2.0 ** (max(exponent, lowest) - bits)


@pytest.mark.parametrize("dtype", NARROW)
@given(value=st.floats(-6e4, 6e4, width=32))
def test_is_unbiased_between_the_two_neighbours(dtype: torch.dtype, value: float) -> None:
    got = dithered(torch.full((MANY,), value), dtype).double()
    step = unit(value, dtype)
    below = math.floor(value / step) * step
    assert set(got.tolist()) <= {below, below + step}
    # Five standard errors of the mean of MANY draws.
    up = (value - below) / step
    allowed = 5 * math.sqrt(up * (1 - up) / MANY) + 1e-6
    assert abs(float((got.mean() - value) / step)) <= allowed


@pytest.mark.parametrize("dtype", NARROW)
def test_every_representable_number_stays(dtype: torch.dtype) -> None:
    """All 65536 of them: subnormals, both zeros, infinities, NaN."""
    every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    got = dithered(every.float(), dtype)
    same = got.view(torch.int16) == every.view(torch.int16)
    assert (same | (every.isnan() & got.isnan())).all()


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float16, 65504.0), (torch.bfloat16, None)])
def test_beyond_the_largest_number_is_rounded_to_nearest(
    dtype: torch.dtype, largest: float | None
) -> None:
    top = torch.finfo(dtype).max if largest is None else largest
    over = torch.tensor([top * (1 + 2**-13), top * (1 + 2**-6.9), math.inf, -math.inf, math.nan])
    exact = torch.cat([over.float(), torch.full((MANY,), top * (1 - 2**-10))])
    got = dithered(exact, dtype)
    assert torch.equal(got[:4], exact[:4].to(dtype))
    assert got[4].isnan()
    assert torch.isfinite(got[5:]).all()
    assert len(got[5:].unique()) == 2


def test_half_subnormals_have_a_fixed_step(device: torch.device) -> None:
    step = 2.0**-24
    got = dithered(torch.full((MANY,), 2.25 * step, device=device), torch.float16).double() / step
    assert set(got.tolist()) == {2.0, 3.0}
    assert float(got.mean()) == pytest.approx(2.25, abs=0.02)
    tiny = dithered(torch.full((MANY,), -0.5 * step, device=device), torch.float16).double() / step
    assert set(tiny.tolist()) == {0.0, -1.0}


@pytest.mark.parametrize("dtype", NARROW)
def test_is_a_function_of_name_and_offset(dtype: torch.dtype, device: torch.device) -> None:
    exact = torch.randn(300_001, generator=torch.Generator().manual_seed(0)).to(device)
    whole = dithered(exact, dtype)
    assert torch.equal(whole, dithered(exact.clone(), dtype))
    assert torch.equal(whole[:999], dithered(exact[:999], dtype)), "pieces do not matter"
    assert torch.equal(whole.cpu(), dithered(exact.cpu(), dtype)), "nor does the device"
    other = dithered(exact, dtype, "v")
    assert 0.2 < float((whole != other).double().mean()) < 0.7


@pytest.mark.parametrize("shape", [(), (0,), (3, 4)])
def test_shapes(shape: tuple[int, ...]) -> None:
    assert dithered(torch.ones(shape), torch.bfloat16).shape == shape


@pytest.mark.parametrize("coefficient", [0.1, 0.25, 0.499, 0.501, 0.75])
def test_small_task_vectors_are_realised_in_full(coefficient: float) -> None:
    """Delta / weight of 0.2% in bfloat16: to nearest it is a step at one half."""
    random = torch.Generator().manual_seed(0)
    base = torch.randn(1 << 20, generator=random).bfloat16()
    expert = (base.float() + 0.002 * torch.randn(1 << 20, generator=random)).bfloat16()
    exact = torch.empty(base.shape)
    weighted_sum(exact, [base, expert], [1 - coefficient, coefficient])
    wanted = exact.double() - base.double()

    def realised(cast: torch.Tensor) -> float:
        return float((cast.double() - base.double()) @ wanted / (wanted @ wanted))

    assert realised(dithered(exact, torch.bfloat16)) == pytest.approx(1, abs=0.02)
    assert abs(realised(exact.bfloat16()) - 1) > 0.15
