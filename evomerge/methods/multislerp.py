"""Multi-SLERP: the weighted mean direction of several models at their weighted mean length.

``W = (sum_k w_k |W_k|) m / |m|`` with ``m = sum_k w_k W_k / |W_k|``, of the tensors themselves or,
with ``task_vectors``, of ``W_k - W_0`` (added to W_0 again).

Source: Goddard, "Multi-SLERP" (goddard.blog/posts/multislerp-wow-what-a-cool-idea) and mergekit's
``multislerp``. Its step in the tangent space at n = m / |m| vanishes identically, since
``sum_k w_k (u_k - (u_k . n) n) = m - |m| n = 0``: the form above is all that it computes.
``karcher`` is the mean on the sphere that this approximates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from evomerge.errors import ConfigError
from evomerge.methods.base import Basis, Parameter, Scalar, Sources
from evomerge.methods.inner_products import gram
from evomerge.methods.kernels import weighted_sum
from evomerge.methods.parts import add_task_vectors

_EPS = 1e-8
"""mergekit's: added to lengths, and the length of m below which it has no direction."""


class MultiSlerp:
    """Barycentric interpolation on the sphere, of any number of experts."""

    name = "multislerp"
    needs_base = False
    n_experts: tuple[int, int | None] = (1, None)
    parameters: Mapping[str, Parameter] = {
        "weight": Parameter(0.0, 1.0, 0.5, "share of the expert's direction and length"),
    }
    fixed: Mapping[str, Scalar] = {"task_vectors": False, "normalize_weights": True}

    def survey(self, tensors: Iterable[Sources], fixed: Mapping[str, Scalar]) -> None:
        """Nothing to survey."""

    def prepare(self, sources: Sources, survey: None, fixed: Mapping[str, Scalar]) -> Basis:
        """The sources themselves, and their Gram matrix."""
        experts = tuple(sources.experts)
        if not fixed["task_vectors"]:
            return Basis(experts, gram(experts))
        if sources.base is None:
            raise ConfigError("multislerp with task_vectors needs a base model; set models.base.")
        return Basis((sources.base, *experts), gram(experts, sources.base))

    def combine(
        self,
        out: torch.Tensor,
        basis: Basis,
        coefficients: Mapping[str, Sequence[float]],
        fixed: Mapping[str, Scalar],
    ) -> None:
        """Writes the merge; raises ConfigError where normalised weights sum to zero."""
        weights = np.array(coefficients["weight"])
        if fixed["normalize_weights"]:
            if abs(weights.sum()) < 1e-6:
                raise ConfigError(
                    f"multislerp: the weights {weights.tolist()} sum to zero and cannot be "
                    "normalised; raise the lower bound of the search space, or set "
                    "fixed.normalize_weights to false."
                )
            weights /= weights.sum()
        shares = _shares(basis.extra, weights)
        if fixed["task_vectors"]:
            base, *experts = basis.tensors
            add_task_vectors(out, base, experts, shares)
        else:
            weighted_sum(out, basis.tensors, shares)


def _shares(gram: np.ndarray, weights: np.ndarray) -> list[float]:
    """Coefficients of the experts (or task vectors) from their (N, N) Gram matrix."""
    if len(weights) == 1:
        return [1.0]  # nothing to interpolate, whatever the weight: as mergekit
    lengths = np.sqrt(gram.diagonal())
    mean = weights / (lengths + _EPS)
    length = np.sqrt(max(mean @ gram @ mean, 0.0))
    if length < _EPS:  # antipodal, or all zero: the straight line is defined nevertheless
        return [float(w) for w in weights]
    return [float(c) for c in mean * (weights @ lengths / length)]
