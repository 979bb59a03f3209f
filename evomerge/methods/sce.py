"""SCE: select entries by variance, calculate weights from energy, erase minority signs.

Of the entries whose variance over the experts' task vectors is not zero, the ``select_topk``
largest are selected (all entries where it is 1), and the rest of the task vectors is zeroed.
Expert k weighs ``e_k / sum_j e_j`` with its energy ``e_k`` over the selected entries. On an entry
only experts with the sign of the sum count, and their weights are normalised there. ``lambda``
times the result is added to the base; mergekit: 1.

Source: Wan et al. 2024, "FuseChat" (arXiv:2408.07990), section 3.3; mergekit's ``sce``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from evomerge.errors import ConfigError
from evomerge.methods.base import Basis, Parameter, Scalar, Sources
from evomerge.methods.kernels import wide_dtype, wide_parts

_EDGES = 1024
"""Parts that the sorted variances of a tensor are cut into."""
_LEAST = 1e-6
"""Least sum of weights that an entry is divided by, as in mergekit."""


@dataclasses.dataclass(frozen=True)
class _Survey:
    """What is known of a tensor before any candidate.

    Attributes:
        n: Number of entries with a variance.
        edges: (at most 1025,) their variances at equal steps of the sorted order, largest first.
        energies: (K,) sums of squares of the whole task vectors.
    """

    n: int
    edges: torch.Tensor
    energies: torch.Tensor


class Sce:
    """``W = W_0 + lambda SCE(W_k - W_0)``."""

    name = "sce"
    needs_base = True
    n_experts: tuple[int, int | None] = (1, None)
    parameters: Mapping[str, Parameter] = {
        "select_topk": Parameter(
            0.1, 1.0, 1.0, "share of the entries kept, by variance over the experts", shared=True
        ),
        "lambda": Parameter(
            0.0, 2.0, 1.0, "scale of the merged task vector; mergekit: 1", shared=True
        ),
    }
    fixed: Mapping[str, Scalar] = {"floor": 0.0}

    def survey(self, tensors: Iterable[Sources], fixed: Mapping[str, Scalar]) -> None:
        """Nothing to survey."""

    def prepare(self, sources: Sources, survey: None, fixed: Mapping[str, Scalar]) -> Basis:
        """The sources themselves, and where their variances lie."""
        if sources.base is None:
            raise ConfigError("sce needs a base model; set models.base.")
        tensors = (sources.base, *sources.experts)
        first = tensors[0]
        variances = torch.empty(first.numel(), dtype=wide_dtype(first), device=first.device)
        energies = torch.zeros(len(sources.experts), dtype=torch.float64)
        for part, deltas in _deltas(tensors):
            variances[part] = deltas.var(0, correction=0)
            energies += deltas.double().square_().sum(1).cpu()
        n = int(torch.count_nonzero(variances))
        ordered = variances.sort(descending=True).values[:n]
        places = torch.linspace(0, max(n - 1, 0), min(n, _EDGES + 1)).long()
        return Basis(tensors, _Survey(n, ordered[places].cpu(), energies))

    def combine(
        self,
        out: torch.Tensor,
        basis: Basis,
        coefficients: Mapping[str, Sequence[float]],
        fixed: Mapping[str, Scalar],
    ) -> None:
        """Writes the merge; entries that tie with the last selected one are selected too."""
        known: _Survey = basis.extra
        density = coefficients["select_topk"][0]
        threshold, energies = -1.0, known.energies
        if density < 1:
            threshold, energies = _select(basis.tensors, known, int(known.n * max(density, 0.0)))
        weights = _weights(energies, out.numel(), float(fixed["floor"]))
        scale, flat, base = coefficients["lambda"][0], out.view(-1), basis.tensors[0].reshape(-1)
        weights = weights.to(out.device, wide_dtype(base)).unsqueeze(1)
        for part, deltas in _deltas(basis.tensors):
            if density < 1:
                deltas.mul_(deltas.var(0, correction=0) >= threshold)
            agreed = torch.where(deltas.sum(0) >= 0, 1.0, -1.0)
            counted = (deltas.sign() == agreed) * weights
            merged = deltas.mul_(counted).sum(0).div_(counted.sum(0).clamp_(min=_LEAST))
            flat[part].copy_(merged.mul_(scale).add_(base[part]))


def _deltas(
    tensors: Sequence[torch.Tensor],
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Chunks of the task vectors, (K, chunk), free to be written to."""
    for part, (base, *experts) in wide_parts(tensors, wide_dtype(tensors[0])):
        yield part, torch.stack([e - base for e in experts])


def _select(tensors: Sequence[torch.Tensor], known: _Survey, n: int) -> tuple[float, torch.Tensor]:
    """The n-th largest variance, and the energies of what reaches it: one pass.

    The edges tell between which two variances it lies; only entries between them are kept.
    """
    nothing = float("inf"), torch.zeros_like(known.energies)
    if n == 0:
        return nothing
    steps = (known.n - 1) / max(len(known.edges) - 1, 1)
    at = min(int((n - 1) / steps), len(known.edges) - 1) if steps else 0
    high = float(known.edges[max(at - 1, 0)])
    low = float(known.edges[min(at + 1, len(known.edges) - 1)])
    energies = torch.zeros_like(known.energies)
    above, near_variances, near_squares = 0, [], []
    for _, deltas in _deltas(tensors):
        variances = deltas.var(0, correction=0)
        squares = deltas.double().square_()
        sure, near = variances > high, (variances <= high) & (variances >= low)
        above += int(sure.sum())
        energies += (squares * sure).sum(1).cpu()
        near_variances.append(variances[near])
        near_squares.append(squares[:, near])
    between, theirs = torch.cat(near_variances), torch.cat(near_squares, 1)
    threshold = between.kthvalue(len(between) - (n - above) + 1).values
    return float(threshold), energies + (theirs * (between >= threshold)).sum(1).cpu()


def _weights(energies: torch.Tensor, n: int, floor: float) -> torch.Tensor:
    """Shares of the energy; equal where its mean squares add up to no more than ``floor``.

    mergekit's floor is 1e-6, which ordinary fine-tuning stays below (changes of 0.0005 from three
    experts), so that its experts weigh equally there.
    """
    total = float(energies.sum())
    if total / max(n, 1) < max(floor, 1e-30):
        return torch.full_like(energies, 1 / len(energies))
    return energies / total
