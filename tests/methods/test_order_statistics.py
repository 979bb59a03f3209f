"""Order statistics of streamed numbers."""

from __future__ import annotations

import pytest
import torch

from evomerge.methods.order_statistics import order_statistics

N = 20_000


def _numbers(kind: str) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(2, N, generator=random)
    if kind == "mostly zero":
        x[torch.rand(2, N, generator=random) < 0.7] = 0
    if kind == "few values":
        x = x.round()
    if kind == "constant":
        x = torch.full((2, N), -0.25)
    if kind == "sorted":
        x = x.sort(1).values
    if kind == "sample misleads":  # every third number, all that a sample of every third sees
        x[:, ::3] = 100 + x[:, ::3]
    return x


@pytest.mark.parametrize(
    "kind", ["normal", "mostly zero", "few values", "constant", "sorted", "sample misleads"]
)
@pytest.mark.parametrize("sample_size", [50, 7_000, N])
def test_equals_sorting(kind, sample_size) -> None:
    x = _numbers(kind)
    places = [0, 2, N // 3, N // 2, 9 * N // 10, N - 1]

    def rows(step):
        return iter(x[:, ::step].split(777, 1))

    found = order_statistics(rows, N, places, sample_size)
    assert torch.equal(found, x.sort(1).values[:, places].double())


def test_a_single_number() -> None:
    x = torch.tensor([[3.0]])
    assert order_statistics(lambda step: iter([x]), 1, [0, 0]).tolist() == [[3.0, 3.0]]
