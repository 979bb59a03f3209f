"""Karcher mean: the point of the sphere with the least squared arc length to all models.

On unit tensors ``u_k = W_k / |W_k|`` with shares ``a_k = w_k / sum w``, from their mean m:
``m <- cos|v| m + sin|v| v / |v|`` with ``v = sum_k a_k (o_k / sin o_k) (u_k - cos o_k m)`` and
``cos o_k = u_k . m``, until ``|v| < tol``; then ``W = (sum_k a_k |W_k|) m``. The iteration runs on
coefficients over the u_k and their Gram matrix: it touches no tensor.

Source: Karcher 1977, "Riemannian center of mass"; for models arXiv:2603.04972, as in mergekit's
``karcher``, which has no weights (here: all equal).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from evomerge.errors import ConfigError
from evomerge.methods.base import Basis, Parameter, Scalar, Sources
from evomerge.methods.inner_products import gram
from evomerge.methods.kernels import weighted_sum


class Karcher:
    """The weighted mean on the sphere; no base model needed."""

    name = "karcher"
    needs_base = False
    n_experts: tuple[int, int | None] = (1, None)
    parameters: Mapping[str, Parameter] = {
        "weight": Parameter(0.0, 1.0, 0.5, "share of the expert; mergekit: all equal"),
    }
    fixed: Mapping[str, Scalar] = {"max_iter": 10, "tol": 1e-5}

    def survey(self, tensors: Iterable[Sources], fixed: Mapping[str, Scalar]) -> None:
        """Nothing to survey."""

    def prepare(self, sources: Sources, survey: None, fixed: Mapping[str, Scalar]) -> Basis:
        """The experts themselves, and their Gram matrix."""
        return Basis(tuple(sources.experts), gram(sources.experts))

    def combine(
        self,
        out: torch.Tensor,
        basis: Basis,
        coefficients: Mapping[str, Sequence[float]],
        fixed: Mapping[str, Scalar],
    ) -> None:
        """Writes the mean; raises ConfigError where the weights sum to zero."""
        weights = np.array(coefficients["weight"])
        total = weights.sum()
        if abs(total) < 1e-6:
            raise ConfigError(
                f"karcher: the weights {weights.tolist()} sum to {total:g} and cannot be "
                "normalised; raise the lower bound of the search space."
            )
        lengths = np.sqrt(basis.extra.diagonal())
        tol = float(fixed["tol"])
        some = lengths > tol  # a tensor without a length has no direction
        shares = np.zeros(len(weights))
        if len(weights) == 1:
            shares[:] = 1.0
        elif some.any() and weights[some].sum() != 0:
            units = basis.extra[np.ix_(some, some)] / np.outer(lengths[some], lengths[some])
            alphas = weights[some] / weights[some].sum()
            mean = _mean(units, alphas, int(fixed["max_iter"]), tol)
            shares[some] = mean / lengths[some] * (weights @ lengths / total)
        weighted_sum(out, basis.tensors, shares.tolist())


def _mean(gram: np.ndarray, alphas: np.ndarray, max_iter: int, tol: float) -> np.ndarray:
    """Coefficients of the mean over unit vectors.

    Args:
        gram: (N, N) inner products of the units.
        alphas: (N,) shares that sum to 1.
        max_iter: Most steps.
        tol: Angle below which a direction counts as reached.
    """

    def norm(c: np.ndarray) -> float:
        return float(np.sqrt(max(c @ gram @ c, 0.0)))

    mean = alphas.copy()
    if norm(mean) < tol:  # the units balance out: start from the first, as mergekit
        mean = np.eye(len(alphas))[0]
    mean = mean / norm(mean)
    for _ in range(max_iter):
        dots = np.clip(gram @ mean, -1, 1)
        angles = np.arccos(dots)
        far = (angles >= tol) & (np.sin(angles) > 1e-9)  # an antipode lies in no direction
        pull = np.where(far, alphas * angles / np.where(far, np.sin(angles), 1.0), 0.0)
        step = pull - (pull @ dots) * mean
        length = norm(step)
        if length < tol:
            break
        mean = np.cos(length) * mean + np.sin(length) / length * step
        mean = mean / norm(mean)
    return mean
