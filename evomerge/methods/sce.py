"""SCE: select entries by variance, calculate weights from energy, erase minority signs.

Of the entries whose variance over the experts' task vectors is not zero, the ``select_topk``
largest are selected (all entries where it is 1), and the rest of the task vectors is zeroed.
Expert k weighs ``e_k / sum_j e_j`` with its energy ``e_k`` over the selected entries. On an entry
only experts with the sign of the sum count, and their weights are normalised there. ``lambda``
times the result is added to the base; mergekit: 1.

Of entries whose variance equals that of the last one selected all are taken (``equal: all``), or
those that ``torch.topk`` puts first (``equal: torch``), which is mergekit's choice where both run
the same torch on the same kind of machine.

Source: Wan et al. 2024, "FuseChat" (arXiv:2408.07990); mergekit's ``sce``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from evomerge.errors import ConfigError
from evomerge.methods.base import Basis, Parameter, Scalar, Sources
from evomerge.methods.parts import wide_dtype, wide_parts

_BINS = 1 << 15
"""Variances are counted by the upper half of their bits: bins of less than 1%."""
_LEAST = 1e-6
"""Least sum of weights that an entry is divided by, as in mergekit."""


@dataclasses.dataclass(frozen=True)
class _Tail:
    """How much of a tensor has at least a certain variance.

    Attributes:
        first: Number of the first bin that is listed.
        counts: (B + 1,) entries in a bin or a higher one; the last is 0.
        energies: (K, B + 1) sums of squares of the experts' task vectors there.
        total: (K,) the same of the whole tensor, entries without a variance among them.
    """

    first: int
    counts: torch.Tensor
    energies: torch.Tensor
    total: torch.Tensor


class Sce:
    """``W = W_0 + lambda SCE(W_k - W_0)``."""

    name = "sce"
    needs_base = True
    n_experts: tuple[int, int | None] = (1, None)
    parameters: Mapping[str, Parameter] = {
        "select_topk": Parameter(
            0.1,
            1.0,
            1.0,
            "share of the entries kept, by variance over the experts",
            shared=True,
            least=0,
            most=1,
        ),
        "lambda": Parameter(
            0.0, 2.0, 1.0, "scale of the merged task vector; mergekit: 1", shared=True
        ),
    }
    fixed: Mapping[str, Scalar] = {"floor": 0.0, "equal": "all"}

    def survey(self, tensors: Iterable[Sources], fixed: Mapping[str, Scalar]) -> None:
        """Nothing to survey. Checks the settings."""
        if fixed["equal"] not in {"all", "torch"}:
            raise ConfigError(
                f"sce: fixed.equal is {fixed['equal']!r}; expected all (entries that tie with the "
                "last one selected) or torch (those that torch.topk puts first, like mergekit)."
            )

    def prepare(self, sources: Sources, survey: None, fixed: Mapping[str, Scalar]) -> Basis:
        """The sources themselves, and how entries and energy spread over the variances."""
        if sources.base is None:
            raise ConfigError("sce needs a base model; set models.base.")
        tensors = (sources.base, *sources.experts)
        counts = torch.zeros(_BINS, dtype=torch.int64)
        energies = torch.zeros(len(sources.experts), _BINS, dtype=torch.float64)
        for _, deltas in _deltas(tensors):
            bins = _bin(_variance(deltas))
            counts += torch.bincount(bins, minlength=_BINS).cpu()
            for k, delta in enumerate(deltas):
                squares = delta.double().square_()
                energies[k] += torch.bincount(bins, squares, minlength=_BINS).cpu()
        used = torch.nonzero(counts[1:]).view(-1) + 1  # bin 0: no variance
        first, last = (int(used[0]), int(used[-1])) if len(used) else (1, 0)
        listed = slice(first, last + 2)
        tail = _Tail(
            first,
            counts.flip(0).cumsum(0).flip(0)[listed].clone(),
            energies.flip(1).cumsum(1).flip(1)[:, listed].clone(),
            energies.sum(1),
        )
        return Basis(tensors, tail)

    def combine(
        self,
        out: torch.Tensor,
        basis: Basis,
        coefficients: Mapping[str, Sequence[float]],
        fixed: Mapping[str, Scalar],
    ) -> None:
        """Writes the merge."""
        density, scale = coefficients["select_topk"][0], coefficients["lambda"][0]
        threshold, energies, chosen = -1.0, basis.extra.total, None
        if density < 1 and fixed["equal"] == "torch":
            chosen, energies = _select_by_torch(basis.tensors, density)
        elif density < 1:
            threshold, energies = _select(basis.tensors, basis.extra, density)
        weights = _weights(energies, out.numel(), float(fixed["floor"]))
        flat, base = out.view(-1), basis.tensors[0].reshape(-1)
        for part, deltas in _deltas(basis.tensors):
            merged = _agreed(deltas, weights)
            if chosen is not None:
                merged.mul_(chosen[part])
            elif density < 1:
                merged.mul_(_variance(deltas) >= threshold)
            flat[part].copy_(merged.mul_(scale).add_(base[part]))


def _deltas(
    tensors: Sequence[torch.Tensor],
) -> Iterator[tuple[slice, list[torch.Tensor]]]:
    """Chunks of the task vectors."""
    for part, (base, *experts) in wide_parts(tensors, wide_dtype(tensors[0])):
        yield part, [e - base for e in experts]


def _variance(deltas: Sequence[torch.Tensor]) -> torch.Tensor:
    """Variance over the experts, exactly 0 where all are equal."""
    first, *others = deltas
    mean, squares = torch.zeros_like(first), torch.zeros_like(first)
    for other in others:
        distance = other - first
        mean.add_(distance)
        squares.addcmul_(distance, distance)
    mean.div_(len(deltas))
    return squares.div_(len(deltas)).addcmul_(mean, mean, value=-1)


def _bin(variances: torch.Tensor) -> torch.Tensor:
    return variances.float().view(torch.int32) >> 16


def _agreed(deltas: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Weighted mean, on each entry, of the experts whose sign is that of the sum."""
    total = torch.zeros_like(deltas[0])
    for delta in deltas:
        total.add_(delta)
    sign = torch.where(total >= 0, 1.0, -1.0).to(total.dtype)
    merged, divisor = torch.zeros_like(total), torch.zeros_like(total)
    for delta, weight in zip(deltas, weights, strict=True):
        size = torch.mul(delta, sign).clamp_(min=0)
        merged.add_(size, alpha=weight)
        divisor.add_(size.sign_(), alpha=weight)
    return merged.div_(divisor.clamp_(min=_LEAST)).mul_(sign)


def _select(
    tensors: Sequence[torch.Tensor], tail: _Tail, density: float
) -> tuple[float, torch.Tensor]:
    """Variance of the last entry selected, and the energies of all that are: one pass.

    The bin that it lies in follows from the counts; only that bin's entries are looked at.
    """
    n = int(int(tail.counts[0]) * max(density, 0.0)) if len(tail.counts) else 0
    if n == 0:
        return float("inf"), torch.zeros_like(tail.total)
    at = int((tail.counts >= n).sum()) - 1
    rest = n - int(tail.counts[at + 1])
    variances, squares = [], []
    for _, deltas in _deltas(tensors):
        chunk = _variance(deltas)
        near = torch.nonzero(_bin(chunk) == tail.first + at).view(-1)
        variances.append(chunk[near])
        squares.append(torch.stack([d[near].double().square_() for d in deltas]))
    found = torch.cat(variances)
    threshold = found.kthvalue(len(found) - rest + 1).values
    energies = (torch.cat(squares, 1) * (found >= threshold)).sum(1).cpu()
    return float(threshold), tail.energies[:, at + 1] + energies


def _select_by_torch(
    tensors: Sequence[torch.Tensor], density: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which entries mergekit selects, (n,) boolean, and their energies: all at once, as there."""
    base, *experts = (t.reshape(-1).to(wide_dtype(t)) for t in tensors)
    deltas = torch.stack([e - base for e in experts])
    variances = deltas.var(0, unbiased=False)
    n = int(int(torch.count_nonzero(variances)) * max(density, 0.0))
    chosen = torch.zeros(len(base), dtype=torch.bool, device=base.device)
    chosen[torch.topk(variances, n).indices] = True
    return chosen, deltas[:, chosen].double().square().sum(1).cpu()


def _weights(energies: torch.Tensor, n: int, floor: float) -> list[float]:
    """Shares of the energy; equal where its mean squares add up to less than ``floor``.

    mergekit's floor is 1e-6, which ordinary fine-tuning stays below (changes of 0.0005 from three
    experts), so that its experts weigh equally there.
    """
    total = float(energies.sum())
    if total / max(n, 1) < max(floor, 1e-30):
        return [1 / len(energies)] * len(energies)
    shares: list[float] = (energies / total).tolist()
    return shares
