"""Metric-weighted averaging."""

from __future__ import annotations

import pytest
import torch

from evomerge.errors import ConfigError
from tests.methods import formulas_beyond
from tests.methods.merging import merged, toy

METRICS = "2.31, 2.40, 2.28"


@pytest.mark.parametrize("rho", [-2.0, 0.0, 1.0, 7.5])
def test_equals_the_formula(rho) -> None:
    base, experts = toy((8, 10))
    expected = formulas_beyond.metric_average(base, experts, {"rho": [rho]}, [2.31, 2.40, 2.28])
    torch.testing.assert_close(
        merged("metric_average", base, experts, {"rho": [rho]}, metrics=METRICS), expected
    )


def test_the_ends_are_the_mean_and_the_best() -> None:
    base, experts = toy((8, 10))
    mean = merged("metric_average", base, experts, {"rho": [0.0]}, metrics=METRICS)
    torch.testing.assert_close(mean, sum(experts) / 3)
    best = merged("metric_average", base, experts, {"rho": [1e5]}, metrics=METRICS)
    torch.testing.assert_close(best, experts[2])


@pytest.mark.parametrize("metrics", ["1, 2", "1, 2, x", "1, 2, 0", "1, 2, nan", "1, 2, -3", "inf"])
def test_wrong_metrics_are_named(metrics) -> None:
    base, experts = toy((8, 10))
    with pytest.raises(ConfigError, match="3 positive numbers"):
        merged("metric_average", base, experts, {"rho": [1.0]}, metrics=metrics)
