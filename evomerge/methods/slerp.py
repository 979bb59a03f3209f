"""Spherical interpolation between two models.

``W = sin((1 - t) a) / sin a W_1 + sin(t a) / sin a W_2`` with a the angle between the two tensors
as vectors; ``(1 - t) W_1 + t W_2`` where their cosine is beyond ``lerp_above``.

Source: Shoemake 1985, "Animating rotation with quaternion curves"; mergekit's ``slerp``. For
models fine-tuned from one base the cosine is nearly always above mergekit's 0.9995, so that slerp
is plain averaging; ``nuslerp`` with ``task_vectors`` is what differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from evomerge.methods.arc import arc, cosine
from evomerge.methods.base import Basis, Parameter, Scalar, Sources
from evomerge.methods.inner_products import gram
from evomerge.methods.kernels import weighted_sum


class Slerp:
    """``W`` on the great circle from the first expert to the second; a base is not used."""

    name = "slerp"
    needs_base = False
    n_experts: tuple[int, int | None] = (2, 2)
    parameters: Mapping[str, Parameter] = {
        "t": Parameter(0.0, 1.0, 0.5, "0: the first expert, 1: the second", shared=True),
    }
    fixed: Mapping[str, Scalar] = {"lerp_above": 0.9995}

    def survey(self, tensors: Iterable[Sources], fixed: Mapping[str, Scalar]) -> None:
        """Nothing to survey."""

    def prepare(self, sources: Sources, survey: None, fixed: Mapping[str, Scalar]) -> Basis:
        """The experts themselves, and the cosine between them."""
        return Basis(tuple(sources.experts), cosine(gram(sources.experts)))

    def combine(
        self,
        out: torch.Tensor,
        basis: Basis,
        coefficients: Mapping[str, Sequence[float]],
        fixed: Mapping[str, Scalar],
    ) -> None:
        """Writes the merge."""
        ends = arc(basis.extra, coefficients["t"][0], float(fixed["lerp_above"]))
        weighted_sum(out, basis.tensors, [float(c) for c in ends])
