"""Metric-weighted averaging: models weigh by how well each scored, sharpened by one exponent.

``W = sum_k w_k W_k`` with ``w_k = m_k^-rho / sum_j m_j^-rho``, ``m_k`` a positive number per
expert that is lower for better models (a loss, an error rate). ``rho`` 0 is the plain average, a
large one the best model. One number to search, however many checkpoints: for the last checkpoints
of one training run, or a pool too large to weigh one by one. For scores that are higher for better
models give a negative range of ``rho``.

The numbers go into ``fixed.metrics``, separated by commas, in the order of ``models.experts``;
without them all models are alike and ``rho`` does nothing.

No base is needed; nothing is prepared or stored.

Source: after Lin et al. 2025, "Parameter-Efficient Checkpoint Merging via Metrics-Weighted
Averaging" (arXiv:2504.18580), whose abstract names metric weights and a penalty factor; the power
is this file's reading of it, there being no released code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch

from evomerge.errors import ConfigError
from evomerge.methods.base import Basis, Parameter, Scalar, Sources
from evomerge.methods.kernels import weighted_sum


class MetricAverage:
    """``W = sum_k m_k^-rho W_k / sum_k m_k^-rho``."""

    name = "metric_average"
    needs_base = False
    n_experts: tuple[int, int | None] = (1, None)
    parameters: Mapping[str, Parameter] = {
        "rho": Parameter(0.0, 10.0, 1.0, "exponent that sharpens the weights", shared=True),
    }
    fixed: Mapping[str, Scalar] = {
        "metrics": "",  # one positive number per expert, lower is better: "2.31, 2.40, 2.28"
    }

    def survey(self, tensors: Iterable[Sources], fixed: Mapping[str, Scalar]) -> None:
        """Checks the metrics.

        Raises:
            ConfigError: Not one positive number per expert.
        """
        for sources in tensors:
            _logs(str(fixed["metrics"]), len(sources.experts))
            return

    def prepare(self, sources: Sources, survey: None, fixed: Mapping[str, Scalar]) -> Basis:
        """The experts themselves, and the logarithms of their metrics."""
        logs = _logs(str(fixed["metrics"]), len(sources.experts))
        return Basis(tuple(sources.experts), extra=logs)

    def combine(
        self,
        out: torch.Tensor,
        basis: Basis,
        coefficients: Mapping[str, Sequence[float]],
        fixed: Mapping[str, Scalar],
    ) -> None:
        """Writes the average."""
        powers = [-coefficients["rho"][0] * log for log in basis.extra]
        weights = [math.exp(p - max(powers)) for p in powers]
        weighted_sum(out, basis.tensors, [w / sum(weights) for w in weights])


def _logs(metrics: str, k: int) -> list[float]:
    if not metrics.strip():
        return [0.0] * k
    try:
        numbers = [float(m) for m in metrics.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != k or not all(0.0 < m < math.inf for m in numbers):
        raise ConfigError(
            f"fixed.metrics: expected {k} positive numbers separated by commas, one per expert in "
            f"the order of models.experts, got {metrics!r}."
        )
    return [math.log(m) for m in numbers]
