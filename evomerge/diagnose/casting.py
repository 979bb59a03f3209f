"""What a coefficient becomes when the merge is rounded to the base's dtype."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from evomerge.experts import ExpertPool
from evomerge.methods.kernels import weighted_sum
from evomerge.methods.rounding import NARROW
from evomerge.realised import Realised, sample

LEVELS = (0.1, 0.25, 0.4, 0.49, 0.6, 0.75, 0.9)
"""Coefficients that are tried: 0.4 is the usual default of task arithmetic, and just below
one half rounding takes most away."""


def realised_coefficients(pool: ExpertPool) -> npt.NDArray[np.float64] | None:
    """(K, levels) realised coefficients of ``base + level * task vector``, rounded to nearest.

    None where no tensor of the base is narrower than float32. Of a sample of entries; tensors
    count by their size. NaN for an expert without a task vector in the sample.
    """
    assert pool.base is not None  # noqa: S101 - the doctor always has one
    if not any(pool.base.tensors[t.name].dtype in {"BF16", "F16"} for t in pool.tensors):
        return None
    sums = [[Realised() for _ in LEVELS] for _ in pool.experts]
    for tensor in pool.tensors:
        origin, experts = pool.sources(tensor.name)
        assert origin is not None  # noqa: S101
        base, count = sample(origin)
        exact = torch.empty(base.shape, dtype=torch.float32)
        for k, whole in enumerate(experts):
            mine, _ = sample(whole)
            for i, level in enumerate(LEVELS):
                weighted_sum(exact, [base, mine], [1 - level, level])
                cast = exact.to(base.dtype) if base.dtype in NARROW else exact
                sums[k][i].add(base, exact, cast, count)
    shares = np.array([[np.nan if s.share is None else s.share for s in row] for row in sums])
    return np.asarray(shares * np.array(LEVELS), dtype=np.float64)
