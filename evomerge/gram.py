"""Inner products of the models, layer group by layer group, streamed from the mapped files.

Where a merge is linear in its models, the K x K Gram matrices of the groups hold every norm and
angle that a search can ask for (:mod:`evomerge.geometry`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from evomerge.experts import ExpertPool
from evomerge.geometry import Geometry
from evomerge.methods.inner_products import gram
from evomerge.recipe import LayerGroup
from evomerge.space import SearchSpace


def grams(
    pool: ExpertPool, groups: Sequence[LayerGroup], *, task_vectors: bool
) -> npt.NDArray[np.float64]:
    """Inner products of the experts, or of their task vectors, within each group.

    Args:
        pool: The models; must have a base where ``task_vectors`` is on.
        groups: G layer groups.
        task_vectors: Of expert - base instead of the experts themselves.

    Returns:
        (G, K, K), summed in float64. One pass over the weights; a few MiB of memory.
    """
    k = len(pool.experts)
    found = np.zeros((len(groups), k, k))
    for g, group in enumerate(groups):
        for name in group.tensors:
            base, experts = pool.sources(name)
            found[g] += gram(experts, base if task_vectors else None)
    return found


def geometry(pool: ExpertPool, space: SearchSpace) -> Geometry | None:
    """The geometry of a space that is linear in the models, or None for any other.

    Linear are ``task_arithmetic`` (in the task vectors; not with ``norms: equal``, whose factors
    differ within a group) and ``linear`` without normalisation (in the experts), with nothing
    searched but the weights.
    """
    own = space.fixed.get("norms", "own") == "own"
    task_vectors = space.method == "task_arithmetic" and own
    averaged = space.method == "linear" and not space.fixed.get("normalize", True)
    linear_map = space.linear_map("weight") if task_vectors or averaged else None
    if linear_map is None:
        return None
    groups = [g.group for g in space.groups]
    return Geometry(
        grams(pool, groups, task_vectors=task_vectors),
        np.array([g.size for g in space.groups], dtype=np.float64),
        linear_map,
        np.array([a.low for a in space.axes]),
        np.array([a.high for a in space.axes]),
    )
