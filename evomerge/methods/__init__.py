"""Merge methods: one file each, all in :data:`METHODS`.

* :mod:`~evomerge.methods.base`: the protocol (survey, prepare, combine).
* :mod:`~evomerge.methods.kernels`: in-place fp32-accumulated weighted sums.
* :mod:`~evomerge.methods.linear`: weighted average of models.
* :mod:`~evomerge.methods.task_arithmetic`: base plus scaled task vectors.

To add one: write the file, add a line below, add ``search_spaces/<name>.yaml``; the contract suite
in ``tests/methods`` finds it here.
"""

from __future__ import annotations

from evomerge.errors import unknown_name
from evomerge.methods.base import MergeMethod, Parameter, Sources
from evomerge.methods.linear import Linear
from evomerge.methods.task_arithmetic import TaskArithmetic

METHODS: dict[str, MergeMethod] = {m.name: m for m in (Linear(), TaskArithmetic())}

__all__ = ["METHODS", "MergeMethod", "Parameter", "Sources", "method"]


def method(name: str) -> MergeMethod:
    """Looks a method up by name.

    Raises:
        UnknownNameError: No such method, with the nearest known ones.
    """
    try:
        return METHODS[name]
    except KeyError:
        raise unknown_name("merge method", name, METHODS) from None
