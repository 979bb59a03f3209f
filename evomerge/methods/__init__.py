"""Merge methods: one file each, all in :data:`METHODS`.

* :mod:`~evomerge.methods.base`: the protocol (survey, prepare, combine).
* :mod:`~evomerge.methods.counter`: uniform numbers as a function of (key, offset).
* :mod:`~evomerge.methods.kernels`: in-place fp32-accumulated weighted sums.
* :mod:`~evomerge.methods.rounding`: dithered rounding to bfloat16 and float16.
* :mod:`~evomerge.methods.linear`: weighted average of models.
* :mod:`~evomerge.methods.task_arithmetic`: base plus scaled task vectors.

To add one: write the file, add a line below, add ``search_spaces/<name>.yaml``; the contract suite
in ``tests/methods`` finds it here.
"""

from __future__ import annotations

from collections.abc import Mapping

from evomerge.errors import ConfigError, unknown_name
from evomerge.methods.base import Basis, MergeMethod, Parameter, Scalar, Sources
from evomerge.methods.linear import Linear
from evomerge.methods.rounding import ROUNDINGS
from evomerge.methods.task_arithmetic import TaskArithmetic

METHODS: dict[str, MergeMethod] = {m.name: m for m in (Linear(), TaskArithmetic())}

EVERY_METHOD: dict[str, Scalar] = {"rounding": "nearest"}
"""Fixed settings that every method has, carried out by whoever writes the merged tensor."""

__all__ = [
    "EVERY_METHOD",
    "METHODS",
    "Basis",
    "MergeMethod",
    "Parameter",
    "Sources",
    "check_settings",
    "method",
    "usual_settings",
]


def method(name: str) -> MergeMethod:
    """Looks a method up by name.

    Raises:
        UnknownNameError: No such method, with the nearest known ones.
    """
    try:
        return METHODS[name]
    except KeyError:
        raise unknown_name("merge method", name, METHODS) from None


def usual_settings(name: str) -> dict[str, Scalar]:
    """Every fixed setting of a method and its default."""
    return {**EVERY_METHOD, **method(name).fixed}


def check_settings(name: str, fixed: Mapping[str, Scalar], *, has_base: bool) -> None:
    """Raises ConfigError where a method's fixed settings or its need of a base are not met."""
    chosen, known = method(name), usual_settings(name)
    for key in fixed:
        if key not in known:
            raise ConfigError(
                f"fixed.{key}: merge method {name!r} has no such setting; it has {sorted(known)}."
            )
    if fixed.get("rounding", "nearest") not in ROUNDINGS:
        raise unknown_name("value of fixed.rounding", str(fixed["rounding"]), ROUNDINGS)
    if chosen.needs_base and not has_base:
        raise ConfigError(
            f"merge method {name!r} works on task vectors and needs models.base; give one, or "
            "choose a method without a base, such as 'linear'."
        )
