"""WUDI in closed form: the merged task vector that disturbs the experts' own inputs least.

A linear layer's task vector spans the inputs it was trained on, so ``tau_i^T tau_i`` stands in for
their Gram matrix. The minimum of ``sum_i |(D - tau_i) tau_i^T|^2 / |tau_i|^2`` over D is

    ``D = sum_i tau_i G_i (sum_j G_j)^-1``   with ``G_i = tau_i^T tau_i / |tau_i|^2``,

which is RegMean with data-free statistics; ``W = W_0 + sum_i w_i tau_i G_i (sum_j G_j)^-1``,
linear in the weights. With ``filter: swudi`` gradient descent from ``sum_i tau_i`` is stopped
after ``time`` and kept to the leading share ``keep`` of the directions: with ``V, s`` the
eigenvectors and eigenvalues of ``sum_j G_j`` and ``h = 1 - exp(-s time)``,
``D = sum_i tau_i (I - V h V^T) + tau_i G_i V (h / s) V^T``.

Inputs are a matrix's columns, as in nn.Linear; GPT-2's Conv1D is stored transposed, so that its
outputs are taken for inputs. Everything else (norms, biases, convolutions, and by default
embeddings and heads) is merged by the mean task vector.

Cost: three experts of 768 x 3072 take 2.3 s on one core (filtered: 14 s), once, and 350 MiB
(590) while they do; the directions take as many bytes as the experts.

Source: Cheng et al. 2025, "Whoever Started the Interference Should End It" (arXiv:2503.08099),
which takes 300 steps of Adam at 1e-5; Wei et al. 2025, OptMerge (arXiv:2505.19892) and
its repository WalkerWorldPeace/MLLMerging, ``swudi_merge`` (300, and 0.85 of the directions for
language models). Differences: the released code has one coefficient for all experts, and so does
nothing per expert; Adam as released stops well short of the minimum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from evomerge.errors import ConfigError, unknown_name
from evomerge.methods import directions
from evomerge.methods.base import Basis, Parameter, Scalar, Sources

_FILTERS = ("none", "swudi")
_RIDGE = 1e-10
"""Of the Gram matrix's 1-norm: directions below 1e-5 of the largest singular value fade out."""


class Wudi:
    """``W = W_0 + sum_i w_i tau_i G_i (sum_j G_j)^-1``."""

    name = "wudi"
    needs_base = True
    n_experts: tuple[int, int | None] = (1, None)
    parameters: Mapping[str, Parameter] = {
        "weight": Parameter(0.0, 1.5, 1.0, "scale of the expert's share of the solution"),
    }
    fixed: Mapping[str, Scalar] = {
        "filter": "none",  # or swudi
        "time": 300.0,  # of swudi's gradient descent
        "keep": 0.85,  # swudi: share of the directions that it moves
        "plain": directions.VOCABULARY,  # regular expression: merged by the mean instead
    }

    def survey(self, tensors: Iterable[Sources], fixed: Mapping[str, Scalar]) -> None:
        """Checks the settings.

        Raises:
            UnknownNameError: An unknown filter.
            ConfigError: A time or share out of range.
        """
        if fixed["filter"] not in _FILTERS:
            raise unknown_name("value of fixed.filter", str(fixed["filter"]), _FILTERS)
        time, keep = float(fixed["time"]), float(fixed["keep"])
        if not (time > 0.0 and 0.0 < keep <= 1.0):
            raise ConfigError(
                f"wudi: expected fixed.time > 0 and fixed.keep in (0, 1], got {time} and {keep}."
            )

    def prepare(self, sources: Sources, survey: None, fixed: Mapping[str, Scalar]) -> Basis:
        """Base and every expert's share of the solution."""
        if not directions.is_matrix(sources, fixed):
            return directions.plain(sources, self.name, 1 / len(sources.experts))
        deltas = directions.task_vectors(sources, self.name)
        # An expert that changed nothing has no inputs to disturb.
        scaled = [d / d.norm() if d.any() else d for d in deltas]
        if fixed["filter"] == "swudi":
            found = _filtered(deltas, scaled, float(fixed["time"]), float(fixed["keep"]))
        else:
            found = _solved(deltas, scaled)
        return directions.prepared(sources, self.name, found)

    def combine(
        self,
        out: torch.Tensor,
        basis: Basis,
        coefficients: Mapping[str, Sequence[float]],
        fixed: Mapping[str, Scalar],
    ) -> None:
        """Writes the merge."""
        directions.combine(out, basis, coefficients["weight"])


def _solved(deltas: Sequence[torch.Tensor], scaled: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """``tau_i G_i (sum_j G_j)^-1`` on the smaller side of the stacked task vectors.

    With A the scaled task vectors, one below the other, ``sum_j G_j = A^T A`` and
    ``A_i (A^T A)^-1`` is a block of rows of ``(A A^T)^-1 A``.
    """
    stacked = torch.cat(list(scaled))
    rows, columns = stacked.shape
    if rows <= columns:
        blocks = _inverse_times(stacked @ stacked.T, stacked)
    else:
        blocks = _inverse_times(stacked.T @ stacked, stacked.T).T
    parts = blocks.chunk(len(deltas))
    return [d @ a.T @ b for d, a, b in zip(deltas, scaled, parts, strict=True)]


def _inverse_times(gram: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Solves ``gram x = right`` where gram is positive semidefinite and may be singular."""
    gram.diagonal().add_(_RIDGE * (float(torch.linalg.matrix_norm(gram, 1)) or 1.0))
    return torch.cholesky_solve(right, torch.linalg.cholesky(gram))


def _filtered(
    deltas: Sequence[torch.Tensor], scaled: Sequence[torch.Tensor], time: float, keep: float
) -> list[torch.Tensor]:
    """``tau_i (I - V h V^T) + tau_i G_i V (h / s) V^T``."""
    stacked = torch.cat(list(scaled))
    n = stacked.shape[1]
    values, vectors = torch.linalg.eigh(stacked.T @ stacked)
    values = values.clamp(min=1e-8)  # as released: h / s tends to the time for smaller ones
    moved = 1.0 - torch.exp(-values * time)
    moved[: n - min(n, -int(-n * keep // 1))] = 0.0
    back = vectors * (moved / values)
    pulled = [(d @ a.T) @ (a @ back) for d, a in zip(deltas, scaled, strict=True)]
    return [
        d + (p - (d @ vectors) * moved) @ vectors.T for d, p in zip(deltas, pulled, strict=True)
    ]
