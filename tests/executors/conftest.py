from __future__ import annotations

import numpy as np
import pytest

from evomerge.experts import ExpertPool
from evomerge.space import SearchSpace, load_space
from evomerge.trial import Trial


@pytest.fixture(scope="session")
def pool(family) -> ExpertPool:
    return ExpertPool.open(
        str(family["base"]), {"a": str(family["expert_a"]), "b": str(family["expert_b"])}
    )


@pytest.fixture(scope="session")
def trials(pool) -> list[Trial]:
    """More RUNNING trials with different recipes than any test needs."""
    space = SearchSpace(load_space("blockwise"), pool)
    points = np.random.default_rng(0).uniform(size=(40, space.dim))
    return [Trial(i, "search", x, space.decode(x)) for i, x in enumerate(map(space.snap, points))]
