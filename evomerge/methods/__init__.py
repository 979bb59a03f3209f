"""Merge methods: one file each, all in :data:`METHODS`.

* :mod:`~evomerge.methods.base`: the protocol (survey, prepare, combine).
* :mod:`~evomerge.methods.counter`: uniform numbers as a function of (key, offset).
* :mod:`~evomerge.methods.compiled`: elementwise functions, compiled in the background.
* :mod:`~evomerge.methods.lanes`: what such functions need, in an eager and a compiled form.
* :mod:`~evomerge.methods.kernels`: in-place combination, accumulated in fp32.
* :mod:`~evomerge.methods.linear`: weighted average of models.
* :mod:`~evomerge.methods.task_arithmetic`: base plus scaled task vectors.
* :mod:`~evomerge.methods.sparse`: merges of pruned task vectors, on
  :mod:`~evomerge.methods.ranks` and :mod:`~evomerge.methods.sparse_kernel`:
  :mod:`~evomerge.methods.ties`, :mod:`~evomerge.methods.dare`, :mod:`~evomerge.methods.della`,
  :mod:`~evomerge.methods.breadcrumbs`.

To add one: write the file, add a line below, add ``search_spaces/<name>.yaml``; the contract suite
in ``tests/methods`` finds it here.
"""

from __future__ import annotations

from collections.abc import Mapping

from evomerge.errors import ConfigError, unknown_name
from evomerge.methods.base import Basis, MergeMethod, Parameter, Scalar, Sources
from evomerge.methods.breadcrumbs import BREADCRUMBS, BREADCRUMBS_TIES
from evomerge.methods.dare import DARE_LINEAR, DARE_TIES
from evomerge.methods.della import DELLA, DELLA_LINEAR
from evomerge.methods.linear import Linear
from evomerge.methods.task_arithmetic import TaskArithmetic
from evomerge.methods.ties import TIES

_ALL: tuple[MergeMethod, ...] = (
    Linear(),
    TaskArithmetic(),
    TIES,
    DARE_LINEAR,
    DARE_TIES,
    DELLA,
    DELLA_LINEAR,
    BREADCRUMBS,
    BREADCRUMBS_TIES,
)
METHODS: dict[str, MergeMethod] = {m.name: m for m in _ALL}

__all__ = ["METHODS", "Basis", "MergeMethod", "Parameter", "Sources", "check_settings", "method"]


def method(name: str) -> MergeMethod:
    """Looks a method up by name.

    Raises:
        UnknownNameError: No such method, with the nearest known ones.
    """
    try:
        return METHODS[name]
    except KeyError:
        raise unknown_name("merge method", name, METHODS) from None


def check_settings(name: str, fixed: Mapping[str, Scalar], *, has_base: bool) -> None:
    """Raises ConfigError where a method's fixed settings or its need of a base are not met."""
    chosen = method(name)
    for key in fixed:
        if key not in chosen.fixed:
            raise ConfigError(
                f"fixed.{key}: merge method {name!r} has no such setting; it has "
                f"{sorted(chosen.fixed) or 'none'}."
            )
    if chosen.needs_base and not has_base:
        raise ConfigError(
            f"merge method {name!r} works on task vectors and needs models.base; give one, or "
            "choose a method without a base, such as 'linear'."
        )
