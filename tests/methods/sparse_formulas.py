"""The formulas of the sparsifying methods, as one would write them first, in float64.

Entries where the election hangs on rounding (the weighted values cancel) are NaN: either result
is right there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from evomerge.methods.counter import halves, key

NAME = "layers.0.mlp.weight"

Coefficients = Mapping[str, Sequence[float]]
Formula = Callable[[torch.Tensor, Sequence[torch.Tensor], Coefficients], torch.Tensor]
# From a task vector, its expert's number, its density and the other parameters: the factors that
# its entries are multiplied by.
Prune = Callable[[torch.Tensor, int, float, Coefficients], torch.Tensor]


def by_size(delta: torch.Tensor) -> torch.Tensor:
    """Entries from the largest magnitude to the smallest."""
    return delta.flatten().float().abs().argsort(descending=True, stable=True)


def keep(delta: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    factors = torch.zeros(delta.numel(), dtype=torch.float64, device=delta.device)
    factors[chosen] = 1
    return factors.view(delta.shape)


def largest(delta: torch.Tensor, k: int, density: float, c: Coefficients) -> torch.Tensor:
    n_kept = max(1, int(density * delta.numel())) if density > 0 else 0
    return keep(delta, by_size(delta)[:n_kept])


def middle(delta: torch.Tensor, k: int, density: float, c: Coefficients) -> torch.Tensor:
    n = delta.numel()
    if density >= 1:
        return torch.ones_like(delta)
    n_kept = int(density * n)
    first = min(int(c["gamma"][0] * n), n - n_kept)
    return keep(delta, by_size(delta)[first : first + n_kept])


def drawn(delta: torch.Tensor, k: int, p: torch.Tensor) -> torch.Tensor:
    u = halves(key("0", f"expert {k}", NAME), delta.numel(), delta.device).view(delta.shape)
    return torch.where(u < p * 2.0**16, 1 / p.clamp_min(2.0**-16), torch.zeros_like(p))


def at_random(delta: torch.Tensor, k: int, density: float, c: Coefficients) -> torch.Tensor:
    return drawn(delta, k, torch.full_like(delta, density * 2.0**16).ceil() / 2.0**16)


def magprune(delta: torch.Tensor, k: int, density: float, c: Coefficients) -> torch.Tensor:
    dim = min(1, delta.dim() - 1)
    n = delta.shape[dim] if delta.dim() else 1
    spread = min(c["epsilon"][0], density, 1 - density) if n > 1 else 0.0
    ranks = torch.zeros_like(delta)
    if n > 1:
        order = delta.float().abs().argsort(dim=dim, stable=True)
        ranks = order.argsort(dim=dim).double() / (n - 1)
    return drawn(delta, k, density - spread + 2 * spread * ranks)


def formula(prune: Prune, *, elects: bool, normalize: bool) -> Formula:
    """The merge that prunes so, with everything else at its default."""

    def merged(
        base: torch.Tensor, experts: Sequence[torch.Tensor], c: Coefficients
    ) -> torch.Tensor:
        deltas = [e - base for e in experts]
        pruned = [
            d * prune(d, k, min(max(p, 0.0), 1.0), c)
            for k, (d, p) in enumerate(zip(deltas, c["density"], strict=True))
        ]
        values = torch.stack([w * t for w, t in zip(c["weight"], pruned, strict=True)])
        total = values.sum(dim=0)
        if not elects:
            share = sum(c["weight"]) if normalize else 1.0
            return base + c["lambda"][0] * total / share
        agree = values.sign() == torch.where(total >= 0, 1.0, -1.0)
        result = (values * agree).sum(dim=0)
        if normalize:
            shape = (-1,) + (1,) * base.dim()
            weights = torch.tensor(c["weight"], dtype=torch.float64, device=base.device)
            share = (weights.view(shape) * agree).sum(dim=0)
            result = result / torch.where(share == 0, 1.0, share)
        result = base + c["lambda"][0] * result
        size = values.abs().sum(dim=0)
        return torch.where((total.abs() < 1e-5 * size) & (size > 0), torch.nan, result)

    return merged


FORMULAS: dict[str, Formula] = {
    "ties": formula(largest, elects=True, normalize=True),
    "dare_linear": formula(at_random, elects=False, normalize=False),
    "dare_ties": formula(at_random, elects=True, normalize=False),
    "della": formula(magprune, elects=True, normalize=True),
    "della_linear": formula(magprune, elects=False, normalize=False),
    "breadcrumbs": formula(middle, elects=False, normalize=False),
    "breadcrumbs_ties": formula(middle, elects=True, normalize=False),
}
