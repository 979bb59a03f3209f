"""NearSwap: the expert where it is near the base, at most t away from the base elsewhere.

``W = W_0 + clip(W_1 - W_0, -t, t)``

Source: alchemonaut, "QuartetAnemoi-70B-t0.0001" (Hugging Face model card), as in mergekit's
``nearswap``, which writes the same as a weight ``min(t / |W_1 - W_0|, 1)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from evomerge.errors import ConfigError
from evomerge.methods.base import Basis, Parameter, Scalar, Sources
from evomerge.methods.parts import wide_dtype, wide_parts


class NearSwap:
    """``W = W_0 + clip(W_1 - W_0, -t, t)`` of a base and one expert."""

    name = "nearswap"
    needs_base = True
    n_experts: tuple[int, int | None] = (1, 1)
    parameters: Mapping[str, Parameter] = {
        "t": Parameter(
            0.0,
            0.01,
            0.001,
            "most that a weight moves, in units of the weights",
            shared=True,
            least=0,
        ),
    }
    fixed: Mapping[str, Scalar] = {}

    def survey(self, tensors: Iterable[Sources], fixed: Mapping[str, Scalar]) -> None:
        """Nothing to survey."""

    def prepare(self, sources: Sources, survey: None, fixed: Mapping[str, Scalar]) -> Basis:
        """Base and expert themselves."""
        if sources.base is None:
            raise ConfigError("nearswap needs a base model; set models.base.")
        return Basis((sources.base, *sources.experts))

    def combine(
        self,
        out: torch.Tensor,
        basis: Basis,
        coefficients: Mapping[str, Sequence[float]],
        fixed: Mapping[str, Scalar],
    ) -> None:
        """Writes the merge; a negative t is 0, as in mergekit."""
        t = max(coefficients["t"][0], 0.0)
        flat = out.view(-1)
        for part, (base, expert) in wide_parts(basis.tensors, wide_dtype(out)):
            flat[part].copy_((expert - base).clamp_(-t, t).add_(base))
