"""What the methods' own released code makes of a matrix, at weight 1.

benchmarks/golden/released_methods.py made the file. Where a method differs on purpose
(docs/methods.md), this matrix is not such a case: full rank, one tensor, no ties.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from evomerge.methods import METHODS
from tests.methods.merging import merged

GOLDEN = np.load(Path(__file__).parent / "golden/released.npz")
GIVEN = ("base", "expert_0", "expert_1", "expert_2")
# Computed in fp32 where it was released; the rest in float64.
TOLERANCE = {"wudi": 3e-6}


@pytest.mark.parametrize("name", sorted(set(GOLDEN) - set(GIVEN)))
def test_equals_the_released_code(name) -> None:
    base, *experts = (torch.from_numpy(GOLDEN[n]).double() for n in GIVEN)
    ones = {n: [1.0] * (1 if p.shared else 3) for n, p in METHODS[name].parameters.items()}
    found, expected = merged(name, base, experts, ones), torch.from_numpy(GOLDEN[name]).double()
    error = (found - expected).abs().max() / (expected - base).abs().max()
    assert float(error) < TOLERANCE.get(name, 1e-6)
