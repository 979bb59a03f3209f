"""Merge methods written naively, in float64 and without a Gram matrix: the contract's yardstick.

Each is (base, experts, coefficients) -> merge, with the method's default settings; a method that
takes fewer experts than it is given takes the first ones. NaN where rounding decides.
"""

from __future__ import annotations

import math

import torch


def _along(first, second, t):
    """Slerp as its definition has it."""
    cos = (first * second).sum() / first.norm() / second.norm()
    if not cos.abs() < 1 - 1e-12:  # parallel, antiparallel, or empty
        return (1 - t) * first + t * second
    angle = torch.acos(cos)
    return (torch.sin((1 - t) * angle) * first + torch.sin(t * angle) * second) / angle.sin()


def slerp(base, experts, c):
    first, second = experts[:2]
    t = c["t"][0]
    if (first * second).sum().abs() > 0.9995 * first.norm() * second.norm():
        return (1 - t) * first + t * second
    return _along(first, second, t)


def nuslerp(base, experts, c):
    first, second = c["weight"][:2]
    return _along(experts[0], experts[1], second / (first + second))


def multislerp(base, experts, c):
    """With the step in the tangent space that the method leaves out, since it is zero."""
    weights = torch.tensor(c["weight"], dtype=torch.float64) / sum(c["weight"])
    lengths = torch.stack([e.norm() for e in experts])
    units = torch.stack([e.flatten() / n for e, n in zip(experts, lengths, strict=True)])
    mean = weights @ units
    if mean.norm() < 1e-6:  # the units cancel: rounding decides where the mean points
        return torch.full_like(experts[0], float("nan"))
    mean = mean / mean.norm()
    tangent = weights @ (units - (units @ mean)[:, None] * mean)
    step = tangent.norm() + 1e-8
    point = mean * torch.cos(step) + tangent * torch.sin(step) / step
    return (point * (weights @ lengths)).view(experts[0].shape)


def karcher(base, experts, c):
    weights = torch.tensor(c["weight"], dtype=torch.float64) / sum(c["weight"])
    lengths = torch.stack([e.norm() for e in experts])
    units = [e / n for e, n in zip(experts, lengths, strict=True)]
    mean = sum(w * u for w, u in zip(weights, units, strict=True))
    mean = mean / mean.norm()
    for _ in range(10):
        step = torch.zeros_like(mean)
        for w, u in zip(weights, units, strict=True):
            dot = (u * mean).sum().clamp(-1, 1)
            if dot < 1 - 1e-14:
                step += w * torch.acos(dot) / torch.sin(torch.acos(dot)) * (u - dot * mean)
        length = step.norm()
        if length < 1e-5:
            break
        mean = torch.cos(length) * mean + torch.sin(length) * step / length
    return mean * (weights @ lengths)


def model_stock(base, experts, c):
    deltas = [e - base for e in experts]
    k = len(deltas)
    cosines = [
        (a * b).sum() / a.norm() / b.norm() for i, a in enumerate(deltas) for b in deltas[:i]
    ]
    cos = sum(cosines) / len(cosines)
    t = c["lambda"][0] * k * cos / (1 + (k - 1) * cos)
    return t * sum(experts) / k + (1 - t) * base


def sce(base, experts, c):
    if base.numel() == 0:
        return base
    deltas = torch.stack([e - base for e in experts])
    variances = deltas.var(0, correction=0)
    n = int((variances != 0).sum() * c["select_topk"][0])
    ordered, order = variances.flatten().sort(descending=True)
    mask = torch.zeros(base.numel(), dtype=torch.float64)
    mask[order[:n] if c["select_topk"][0] < 1 else order] = 1
    deltas = deltas * mask.view(base.shape).to(deltas)
    weights = deltas.square().reshape(len(deltas), -1).sum(1)
    weights = (weights / weights.sum().clamp(min=1e-30)).view(-1, *[1] * base.dim())
    total = deltas.sum(0)
    sign = torch.where(total >= 0, 1.0, -1.0)
    weights = weights * (deltas.sign() == sign)
    merged = (weights * deltas).sum(0) / weights.sum(0).clamp(min=1e-6)
    merged[(total != 0) & (total.abs() < 1e-6 * base.abs())] = float("nan")
    if 0 < n < len(order) and ordered[n - 1] <= ordered[n] * (1 + 1e-5):
        merged = merged * float("nan")  # of two equal variances either may be the last
    return base + c["lambda"][0] * merged


def ramplus_tl(base, experts, c):
    deltas = torch.stack([e - base for e in experts])
    changed = deltas.abs() > 1e-5
    count = changed.sum(0)
    merged = torch.zeros_like(base)
    for k, delta in enumerate(deltas):
        unique, shared = changed[k] & (count == 1), changed[k] & (count > 1)
        ratio = float(shared.sum() / unique.sum().clamp(min=1e-5))
        factor = 1 + c["r"][0] * min(ratio, c["alpha"][0])
        merged += c["weight"][k] * delta * (unique * factor + shared / count.clamp(min=1))
    return base + merged


def ram(base, experts, c):
    return ramplus_tl(base, experts, {**c, "r": [0.0], "alpha": [0.0]})


def nearswap(base, experts, c):
    distance = (experts[0] - base).abs().clamp(min=1e-30)
    weight = (c["t"][0] / distance).clamp(max=1)
    return weight * experts[0] + (1 - weight) * base


def arcee_fusion(base, experts, c):
    delta = experts[0] - base
    p, q = (torch.softmax(t, -1) + 1e-8 for t in (experts[0], base))
    importance = delta.abs() * (p * torch.log(p / q)).sum(-1, keepdim=True)
    if importance.numel() == 0:
        return base
    ordered = importance.flatten().sort().values
    low, median, high = (ordered[int(u * (len(ordered) - 1))] for u in (0.25, 0.5, 0.75))
    threshold = median + c["spread"][0] * (high - low)
    merged = base + c["lambda"][0] * delta * (importance >= threshold)
    merged[((importance - threshold).abs() <= 1e-5 * threshold) & (delta != 0)] = float("nan")
    return merged


def passthrough(base, experts, c):
    return c["scale"][0] * experts[0]


FORMULAS = {
    f.__name__: f
    for f in (
        slerp, nuslerp, multislerp, karcher, model_stock, sce, ram, ramplus_tl, nearswap,
        arcee_fusion, passthrough,
    )
}  # fmt: skip

# What the contract computes by hand, of base [1, 2], experts [3, 2] and [1, 6] (task vectors
# [2, 0] and [0, 4]) with the weights [.5, .25]. The experts are sqrt(13) and sqrt(37) long, their
# cosine is 15 / sqrt(481).
_ANGLE = math.acos(15 / math.sqrt(481))
_HALF = 1 / math.sqrt(2 + 30 / math.sqrt(481))  # sin(a / 2) / sin a
_TWO, _ONE = (math.sin(_ANGLE * s / 3) / math.sin(_ANGLE) for s in (2, 1))  # a third of the way
_LENGTH = (2 * math.sqrt(13) + math.sqrt(37)) / 3
_MEAN = [2 * 3 / 13**0.5 + 1 / 37**0.5, 2 * 2 / 13**0.5 + 6 / 37**0.5]
BY_HAND = {
    "slerp": [4 * _HALF, 8 * _HALF],
    "nuslerp": [3 * _TWO + _ONE, 2 * _TWO + 6 * _ONE],
    "multislerp": [_LENGTH * x / math.hypot(*_MEAN) for x in _MEAN],
    "karcher": [  # of two points: on the arc itself, between the unit vectors
        _LENGTH * (3 * _TWO / 13**0.5 + _ONE / 37**0.5),
        _LENGTH * (2 * _TWO / 13**0.5 + 6 * _ONE / 37**0.5),
    ],
    "model_stock": [1.0, 2.0],  # orthogonal task vectors: stay at the base
    "sce": [2.0, 4.0],
    "ram": [2.0, 3.0],
    "ramplus_tl": [2.0, 3.0],
    "nearswap": [1.5, 2.0],
    "arcee_fusion": [2.0, 2.0],
    "passthrough": [6.0, 4.0],
}
OTHERS_BY_HAND: dict[str, dict[str, list[float]]] = {
    "slerp": {"t": [0.5]},
    "model_stock": {"lambda": [1.0]},
    "sce": {"select_topk": [1.0], "lambda": [0.5]},
    "ramplus_tl": {"r": [0.5], "alpha": [0.5]},
    "nearswap": {"t": [0.5]},
    "arcee_fusion": {"lambda": [0.5], "spread": [1.5]},
    "passthrough": {"scale": [2.0]},
}
