"""WUDI: the merged task vector that disturbs the experts' own inputs least, not quite to the end.

A linear layer's task vector spans the inputs it was trained on, so ``tau_i^T tau_i`` stands in for
their Gram matrix, and D is to lessen ``sum_i |(D - tau_i) tau_i^T|^2 / |tau_i|^2``. Its minimum is
``sum_i tau_i G_i (sum_j G_j)^-1`` with ``G_i = tau_i^T tau_i / |tau_i|^2``: RegMean with data-free
statistics. Gradient descent from ``sum_i tau_i`` for a ``time``, in the leading share ``keep`` of
the directions, has a closed form too: with ``V, s`` the eigenvectors and eigenvalues of
``sum_j G_j`` and ``h = 1 - exp(-s time)``

    ``D = sum_i B_i``,  ``B_i = tau_i (I - V h V^T) + tau_i G_i V (h / s) V^T``

and ``W = W_0 + sum_i w_i B_i``, linear in the weights. ``time: 0`` stands for no end, where with
``keep: 1`` D is the minimum itself. It is seldom what one wants: along weak directions it is up to
15 times as long as the task vectors (docs/methods.md).

Inputs are a matrix's columns, as in nn.Linear; GPT-2's Conv1D is stored transposed, so that its
outputs are taken for inputs. Everything else (norms, biases, convolutions, and by default
embeddings and heads) is merged by the mean task vector.

Cost: three experts of 768 x 3072 take 7 s on one core, once, and 360 MiB while they do; the
directions take as many bytes as the experts.

Source: Cheng et al. 2025, "Whoever Started the Interference Should End It" (arXiv:2503.08099),
which takes 300 steps of Adam at 1e-5 from the sum; the flow is ``swudi_merge`` in Wei et al. 2025,
OptMerge (arXiv:2505.19892), github.com/WalkerWorldPeace/MLLMerging, with time 300 and 0.85 of the
directions for language models. Difference: the released code has one coefficient for all experts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch

from evomerge.errors import ConfigError
from evomerge.methods import directions
from evomerge.methods.base import Basis, Parameter, Scalar, Sources
from evomerge.methods.spectrum import singular_vectors


class Wudi(directions.OnDirections):
    """``W = W_0 + sum_i w_i B_i`` with the flow of WUDI's loss on the task vectors' sum."""

    name = "wudi"
    parameters: Mapping[str, Parameter] = {
        "weight": Parameter(0.0, 1.5, 1.0, "scale of the expert's share of the solution"),
    }
    fixed: Mapping[str, Scalar] = {
        "time": 300.0,  # of the descent; 0: to the end
        "keep": 0.85,  # share of the directions that are moved
        "embeddings": False,  # whether embeddings and heads are taken like any matrix
    }

    def survey(self, tensors: Iterable[Sources], fixed: Mapping[str, Scalar]) -> None:
        """Checks the settings.

        Raises:
            ConfigError: A time or share out of range.
        """
        time, keep = float(fixed["time"]), float(fixed["keep"])
        if not (time >= 0.0 and 0.0 < keep <= 1.0):
            raise ConfigError(
                f"wudi: expected fixed.time >= 0 and fixed.keep in (0, 1], got {time} and {keep}."
            )

    def prepare(self, sources: Sources, survey: None, fixed: Mapping[str, Scalar]) -> Basis:
        """Base and every expert's share of the solution."""
        if not directions.is_matrix(sources, fixed):
            return directions.plain(sources, self.name, 1 / len(sources.experts))
        deltas = directions.task_vectors(sources, self.name)
        # An expert that changed nothing has no inputs to disturb.
        scaled = [d / d.norm() if d.any() else d for d in deltas]
        # Of the stacked task vectors: their Gram matrix is sum_j G_j.
        n = math.ceil(deltas[0].shape[1] * float(fixed["keep"]))
        _, lengths, vectors = singular_vectors(torch.cat(scaled), n)
        values, time = lengths**2, float(fixed["time"]) or math.inf
        moved = -torch.expm1(-values * time)
        found = []
        for delta, one in zip(deltas, scaled, strict=True):
            pulled = (delta @ one.T) @ (one @ vectors) * (moved / values)
            found.append(delta + (pulled - delta @ vectors * moved) @ vectors.T)
        return directions.prepared(sources, self.name, found)
