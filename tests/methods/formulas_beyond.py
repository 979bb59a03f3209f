"""The methods beyond mergekit written naively: whole tensors, float64, singular value
decompositions and sorting where the methods have Gram matrices and counting.

Each is (base, experts, coefficients, settings) -> merge of one matrix that is the whole model.
"""

from __future__ import annotations

import math

import torch


def _mixed(base, directions, weights):
    return base + sum(w * d for w, d in zip(weights, directions, strict=True))


def tsv(base, experts, c, rank_fraction=0.0):
    deltas = [e - base for e in experts]
    if base.ndim != 2:
        return _mixed(base, [d / len(deltas) for d in deltas], c["weight"])
    r = max(1, int(min(base.shape) * (rank_fraction or 1 / len(deltas))))
    triplets = [torch.linalg.svd(d, full_matrices=False) for d in deltas]

    def polar(a):
        u, _, vh = torch.linalg.svd(a, full_matrices=False)
        return u @ vh

    left = polar(torch.cat([u[:, :r] for u, _, _ in triplets], 1))
    right = polar(torch.cat([vh[:r] for _, _, vh in triplets], 0))
    values = torch.cat([w * s[:r] for w, (_, s, _) in zip(c["weight"], triplets, strict=True)])
    return base + left @ torch.diag(values) @ right


def pcb_parts(base, experts, ratio=0.1, outliers=0.0001):
    """(K, d) clipped task vectors and scores."""
    t = torch.stack([(e - base).reshape(-1) for e in experts])
    k, d = t.shape
    ordered = t.abs().sort(1).values
    cut = int(d * outliers)
    last = max(int(d * (1 - outliers)) - 1, cut)
    low, high = ordered[:, cut, None], ordered[:, last, None]
    sizes = t.abs().clamp(low, high)
    scaled = (sizes - low) / torch.where(high > low, high - low, 1.0)
    balance = torch.exp(k * scaled**2) * torch.tanh(t * t.sum(0))
    least = balance.sort(1).values[:, min(int(d * (1 - ratio)), d - 1), None]
    balance = balance.clamp(min=least)
    scores = (balance - least) / (balance.max(1, keepdim=True).values - least)
    return t.sign() * sizes, scores


def pcb(base, experts, c, **settings):
    clipped, scores = pcb_parts(base, experts, **settings)
    weights = torch.tensor(c["weight"], dtype=base.dtype)[:, None]
    total = scores.sum(0)
    merged = (weights * clipped * scores).sum(0) / torch.where(total > 0, total, 1.0)
    return base + merged.view_as(base)


def consensus(base, experts, c, threshold=0.4, min_experts=2):
    multi = base + sum(e - base for e in experts)
    masks = [(e - base).abs() > threshold * (multi - e).abs() for e in experts]
    keep = sum(m.double() for m in masks) >= min_experts
    return _mixed(base, [keep * (e - base) for e in experts], c["weight"])


def localize_stitch(base, experts, c, density=0.1):
    n = max(1, int(base.numel() * density))
    masks = []
    for e in experts:
        mask = torch.zeros(base.numel(), dtype=base.dtype)
        mask[(e - base).abs().reshape(-1).topk(n).indices] = 1
        masks.append(mask.view_as(base))
    total = sum(masks).clamp(min=1)
    directions = [m / total * (e - base) for m, e in zip(masks, experts, strict=True)]
    return _mixed(base, directions, c["weight"])


def wudi(base, experts, c, time=300.0, keep=0.85):
    """The differential equation's solution by a matrix exponential; no time is all of it."""
    deltas = [e - base for e in experts]
    if base.ndim != 2:
        return _mixed(base, [d / len(deltas) for d in deltas], c["weight"])
    grams = [d.T @ d / d.norm() ** 2 for d in deltas]
    n, total = len(grams[0]), sum(grams)
    leading = torch.linalg.eigh(total).eigenvectors[:, n - math.ceil(n * keep) :]
    kept = leading @ leading.T
    end = torch.linalg.pinv(total, hermitian=True)
    left = torch.matrix_exp(-total * time) if time else torch.eye(n) - total @ end
    directions = [
        d - d @ kept + (d @ left + d @ g @ end @ (torch.eye(n) - left)) @ kept
        for d, g in zip(deltas, grams, strict=True)
    ]
    return _mixed(base, directions, c["weight"])


def iso_c(base, experts, c):
    total = sum(e - base for e in experts)
    if base.ndim != 2:
        return base + c["scale"][0] * total / len(experts)
    u, s, vh = torch.linalg.svd(total, full_matrices=False)
    return base + c["scale"][0] * s.mean() * u @ vh


def opcm_directions(base, experts, alpha=0.5):
    """The cleaned task vectors, with the full decomposition of the released code."""
    parts = [experts[0] - base]
    for e in experts[1:]:
        u, s, vh = torch.linalg.svd(sum(parts), full_matrices=True)
        inside = u.T @ (e - base) @ vh.T
        r = int((s.cumsum(0) / s.sum() > alpha).double().argmax())
        inside.diagonal().fill_(0)
        inside[:r, :r] = 0
        parts.append(u @ inside @ vh)
    return parts


def opcm(base, experts, c, alpha=0.5):
    parts = [e - base for e in experts]
    length = sum(p.norm() for p in parts) / len(parts)
    if base.ndim == 2:
        parts = opcm_directions(base, experts, alpha)
    return _mixed(base, [p * length / sum(parts).norm() for p in parts], c["weight"])


def doge_loss(change, deltas, factors):
    """What the change is to minimise."""
    merged = sum(f * d for f, d in zip(factors, deltas, strict=True))
    rest = [d * (d - merged - sum(factors) * change) for d in deltas]
    return sum(r.sum(1).pow(2).sum() for r in rest)


def doge_change(deltas, factors, subspace=1 / 6, steps=400, rate=1e-4):
    """The modification by torch's own gradients and Adam."""
    side = min(deltas[0].shape)
    leading = [
        torch.linalg.svd(d, full_matrices=False).U[:, : side // len(deltas)] for d in deltas
    ]
    shared = torch.linalg.svd(torch.cat(leading, 1), full_matrices=False).U
    shared = shared[:, : int(side * subspace + 1e-9)]
    change = torch.zeros_like(deltas[0], requires_grad=True)
    adam = torch.optim.Adam([change], lr=rate)
    for _ in range(steps):
        adam.zero_grad()
        doge_loss(change, deltas, factors).backward()
        change.grad -= shared @ shared.T @ change.grad
        adam.step()
    return change.detach()


def doge(base, experts, c, eta=0.07, keep=0.3, **settings):
    deltas = [e - base for e in experts]
    if base.ndim != 2:
        return _mixed(base, [d / len(deltas) for d in deltas], c["weight"])
    factors = [eta / float(d.norm()) for d in deltas]
    change = doge_change(deltas, factors, **settings)
    parts = []
    for d, f in zip(deltas, factors, strict=True):
        mask = torch.zeros(d.numel(), dtype=d.dtype)
        mask[d.abs().reshape(-1).topk(max(1, int(d.numel() * keep))).indices] = 1
        parts.append((d + change) * f * mask.view_as(d))
    return _mixed(base, parts, c["weight"])


def widen(base, experts, c, ratio=1.0, calibration=1.0):
    """Column by column."""
    deltas = torch.stack([e - base for e in experts])

    def scores(ranks):
        important = ranks > ranks.mean(1, keepdim=True) * ratio
        return torch.where(important, calibration, ranks.softmax(0))

    if base.ndim != 2:
        return _mixed(base, deltas * scores(deltas.abs()), c["weight"])
    n = base.shape[1]
    ranks = []
    for e in experts:
        lengths = [float((e[:, j].norm() - base[:, j].norm()).abs()) for j in range(n)]
        turns = [1 - float(torch.cosine_similarity(e[:, j], base[:, j], dim=0)) for j in range(n)]
        ranks.append([[sorted(x).index(v) / n for v in x] for x in (lengths, turns)])
    both = torch.tensor(ranks, dtype=base.dtype)
    weight = (scores(both[:, 0]) + scores(both[:, 1])) / 2
    return _mixed(base, deltas * weight[:, None], c["weight"])


def metric_average(base, experts, c, metrics=None):
    metrics = metrics or [1.0] * len(experts)
    weights = [m ** -c["rho"][0] for m in metrics]
    return sum(w / sum(weights) * e for w, e in zip(weights, experts, strict=True))


FORMULAS = {
    "tsv": tsv,
    "pcb": pcb,
    "consensus": consensus,
    "localize_stitch": localize_stitch,
    "wudi": wudi,
    "iso_c": iso_c,
    "opcm": opcm,
    "doge": doge,
    "widen": widen,
    "metric_average": metric_average,
}
# Weights .5 and .25 of the task vectors [2, 0] and [0, 4] over the base [1, 2].
BY_HAND = {
    # A vector has no singular vectors: half of task arithmetic, the mean.
    "tsv": [1.5, 2.5],
    "wudi": [1.5, 2.5],
    "doge": [1.5, 2.5],
    "iso_c": [1.5, 3.0],
    "opcm": [1 + 3 / 20**0.5, 2 + 3 / 20**0.5],  # the mean length 3 over the sum's, sqrt(20)
    "pcb": [1.0, 2.0],  # a tenth of two entries: none exceeds the threshold
    "consensus": [1.0, 2.0],  # each entry is one expert's alone
    "localize_stitch": [2.0, 3.0],
    "widen": [2.0, 3.0],  # each one's changed entry stands out
    "metric_average": [2.0, 4.0],  # without metrics, the mean
}
OTHERS_BY_HAND = {"iso_c": {"scale": [0.5]}, "metric_average": {"rho": [2.0]}}
