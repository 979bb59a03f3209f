"""Where rounding decides what mergekit merges: the figures of docs/methods.md.

    python benchmarks/golden/mergekit_rounding.py

Run it in an environment of mergekit's own (mergekit 0.1.5; it needs nothing of evomerge). The
same code of mergekit's is given fp32 and float64 tensors.
"""

from __future__ import annotations

import torch
from mergekit.merge_methods import TensorGroup, get
from mergekit.merge_methods.arcee_fusion import DynamicThresholdFusion, _compute_importance


def arcee(size: float, relative: float) -> None:
    random = torch.Generator().manual_seed(0)
    base = size * torch.randn(512, 1024, generator=random)
    expert = base + relative * size * torch.randn(base.shape, generator=random)
    narrow, wide = (_compute_importance(*t) for t in (
        (expert, base), (expert.double(), base.double())
    ))  # fmt: skip
    taken, right = (DynamicThresholdFusion().compute_fusion_mask(i)[0] for i in (narrow, wide))
    print(
        f"arcee_fusion, weights of {size:g} changed by {relative:.0%}: in rows of negative "
        f"divergence {(narrow < 0).double().mean():.1%}, taken {taken.mean():.1%} instead of "
        f"{right.mean():.1%}, of the right ones {(taken * right).sum() / right.sum():.1%}"
    )


def karcher(relative: float) -> None:
    """How far from the middle of two equally long models their mean lies, 1: at one of them."""
    shares = []
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        base = torch.randn(256, 256, generator=random)
        pair = [base + relative * torch.randn(base.shape, generator=random) for _ in range(2)]
        pair[1] *= pair[0].norm() / pair[1].norm()
        (mean,) = get("karcher")([TensorGroup.from_tensors(pair)], parameters={})
        a, b = (t.double() for t in pair)
        shares.append(float((mean.double() - (a + b) / 2).norm() / ((a - b) / 2).norm()))
    print(f"karcher, models {relative:.2%} apart: off the middle by at most {max(shares):.3f}")


if __name__ == "__main__":
    for size, relative in ((0.02, 0.01), (0.02, 0.1), (1.0, 0.1)):
        arcee(size, relative)
    for relative in (1e-4, 3e-4, 1e-3, 1e-2):
        karcher(relative)
