"""DOGE: a shared change of all task vectors that keeps each of them intact, by descent.

For a matrix, with ``lambda_i = eta / |tau_i|`` and ``L = sum_i lambda_i``, a modification D of all
task vectors is sought that takes the least from any of them, row by row:

    ``loss(D) = sum_j | rowsum(tau_j * (tau_j - sum_i lambda_i tau_i - L D)) |^2``

by ``steps`` steps of Adam from 0, with gradients kept out of the subspace that the experts share
(the leading ``subspace`` of the left singular vectors of their leading left singular vectors side
by side). Then every expert keeps the share ``keep`` of its entries that is largest (of all its
matrices): ``W = W_0 + sum_i w_i lambda_i m_i * (tau_i + D)``. D and the masks do not depend on the
weights, so the merge is linear in them. There is no randomness.

``eta`` and ``rate`` are in units of the weights: the released values are for CLIP, whose tensors'
task vectors are 0.1 to 0.5 long, so that lambda is a coefficient of about 0.3. For other models
set eta to 0.3 times the length of a typical tensor's task vector, and rate to a third of its
entries' standard deviation.

Everything else (norms, biases, convolutions, and by default embeddings and heads) is merged by the
mean task vector.

Cost: three experts of 768 x 3072 take 28 s on one core, once, and 250 MiB while they do; the
directions take as many bytes as the experts.

Source: Wei et al. 2025, "Modeling Multi-Task Model Merging as Adaptive Projective Gradient
Descent" (arXiv:2501.01230); FusionBench's ``doge_ta``. Differences: the released code leaves
everything but the encoder's matrices at the base, and has one coefficient, eta, for all experts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from evomerge.errors import ConfigError
from evomerge.methods import directions
from evomerge.methods.base import Basis, Parameter, Scalar, Sources
from evomerge.methods.order_statistics import order_statistics
from evomerge.methods.spectrum import singular_vectors

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8  # Adam's, as in torch


class Doge(directions.OnDirections):
    """``W = W_0 + sum_i w_i lambda_i m_i * (tau_i + D)``."""

    name = "doge"
    parameters: Mapping[str, Parameter] = {
        "weight": Parameter(0.3, 2.0, 1.0, "scale of the expert's modified task vector"),
    }
    fixed: Mapping[str, Scalar] = {
        "eta": 0.07,  # length that an expert's task vector is brought to; 0.02 to 0.15
        "keep": 0.3,  # share of the entries kept
        "subspace": 1 / 6,  # share of the directions that D stays out of
        "steps": 400,
        "rate": 1e-4,  # Adam's step
        "embeddings": False,  # whether embeddings and heads are taken like any matrix
    }

    def survey(
        self, tensors: Iterable[Sources], fixed: Mapping[str, Scalar]
    ) -> torch.Tensor | None:
        """(K, 1) the smallest magnitude that each expert keeps in its matrices.

        Raises:
            ConfigError: A setting out of range, or no base.
        """
        keep, subspace, steps = (fixed[name] for name in ("keep", "subspace", "steps"))
        if not (0.0 < float(keep) <= 1.0 and 0.0 <= float(subspace) <= 1.0 and int(steps) >= 0):
            raise ConfigError(
                f"doge: expected fixed.keep in (0, 1], fixed.subspace in [0, 1] and fixed.steps "
                f">= 0, got {keep}, {subspace} and {steps}."
            )
        matrices = [s for s in tensors if directions.is_matrix(s, fixed)]
        n = sum(s.experts[0].numel() for s in matrices)
        if n == 0:
            return None

        def magnitudes(step: int) -> Iterator[torch.Tensor]:
            return (t.abs_() for t in directions.task_vector_parts(matrices, self.name, step))

        return order_statistics(magnitudes, n, [n - max(1, int(n * float(keep)))])

    def prepare(
        self, sources: Sources, survey: torch.Tensor | None, fixed: Mapping[str, Scalar]
    ) -> Basis:
        """Base and the modified, masked and scaled task vectors."""
        if survey is None or not directions.is_matrix(sources, fixed):
            return directions.plain(sources, self.name, 1 / len(sources.experts))
        deltas = directions.task_vectors(sources, self.name)
        lengths = [float(d.norm()) for d in deltas]
        factors = [float(fixed["eta"]) / n if n > 0 else 0.0 for n in lengths]
        change = _descend(deltas, factors, _shared(deltas, float(fixed["subspace"])), fixed)
        found = []
        for delta, factor, threshold in zip(deltas, factors, survey[:, 0].tolist(), strict=True):
            kept = (delta.float().abs() >= threshold) & (delta != 0)
            found.append((delta + change) * kept * factor)
        return directions.prepared(sources, self.name, found)


def _shared(deltas: Sequence[torch.Tensor], share: float) -> torch.Tensor:
    """(rows, r) orthonormal: what the experts' leading left singular vectors have in common."""
    side = min(deltas[0].shape)
    each = int(side / len(deltas))
    leading = torch.cat([singular_vectors(d, each)[0] for d in deltas], 1)
    return singular_vectors(leading, int(side * share + 1e-9))[0]


def _descend(
    deltas: Sequence[torch.Tensor],
    factors: Sequence[float],
    closed: torch.Tensor,
    fixed: Mapping[str, Scalar],
) -> torch.Tensor:
    """Adam on the loss, whose gradient is ``-2 L sum_j r_j tau_j`` with its row sums ``r_j``."""
    total = sum(factors)
    merged = torch.zeros_like(deltas[0])
    for delta, factor in zip(deltas, factors, strict=True):
        merged.add_(delta, alpha=factor)
    aims = [(d * (d - merged)).sum(1) for d in deltas]
    change, mean, square = (torch.zeros_like(merged) for _ in range(3))
    for step in range(1, int(fixed["steps"]) + 1):
        slope = torch.zeros_like(merged)
        for delta, aim in zip(deltas, aims, strict=True):
            rest = aim - total * torch.linalg.vecdot(delta, change)
            slope.addcmul_(delta, rest.unsqueeze(1), value=-2.0 * total)
        slope.sub_(closed @ (closed.T @ slope))
        mean.lerp_(slope, 1 - _BETAS[0])
        square.mul_(_BETAS[1]).addcmul_(slope, slope, value=1 - _BETAS[1])
        size = (square / (1 - _BETAS[1] ** step)).sqrt_().add_(_EPSILON)
        change.addcdiv_(mean, size, value=-float(fixed["rate"]) / (1 - _BETAS[0] ** step))
    return change
