"""Merge methods: one file each, all in :data:`METHODS`.

* :mod:`~evomerge.methods.base`: the protocol (survey, prepare, combine).
* :mod:`~evomerge.methods.arc`: the two coefficients of a point on an arc.
* :mod:`~evomerge.methods.counter`: uniform numbers as a function of (key, offset).
* :mod:`~evomerge.methods.compiled`: elementwise functions, compiled in the background.
* :mod:`~evomerge.methods.directions`: a merge as the base plus directions prepared once.
* :mod:`~evomerge.methods.inner_products`: Gram matrices in float64, of tensors or their rows.
* :mod:`~evomerge.methods.kernels`: in-place combination, accumulated in fp32.
* :mod:`~evomerge.methods.lanes`: what such functions need, in an eager and a compiled form.
* :mod:`~evomerge.methods.native`: such functions in C (``native.c``), for the CPU.
* :mod:`~evomerge.methods.order_statistics`: the k-th smallest of numbers that stream by.
* :mod:`~evomerge.methods.parts`: walking tensors piece by piece.
* :mod:`~evomerge.methods.rounding`: dithered rounding to bfloat16 and float16.
* :mod:`~evomerge.methods.spectrum`: singular vectors and polar factors by a Gram matrix.

* :mod:`~evomerge.methods.arcee_fusion`: an expert's most important changes.
* :mod:`~evomerge.methods.consensus`: only entries that enough experts need.
* :mod:`~evomerge.methods.doge`: a shared change that keeps each task vector intact.
* :mod:`~evomerge.methods.iso_c`: the task vectors' sum, all directions equally strong.
* :mod:`~evomerge.methods.karcher`: the mean on the sphere.
* :mod:`~evomerge.methods.linear`: weighted average of models.
* :mod:`~evomerge.methods.localize_stitch`: every expert's largest changes.
* :mod:`~evomerge.methods.metric_average`: an average weighted by scores to a power.
* :mod:`~evomerge.methods.model_stock`: towards the experts' mean as far as their angle says.
* :mod:`~evomerge.methods.multislerp`: mean direction at mean length.
* :mod:`~evomerge.methods.nearswap`: at most a fixed step away from the base.
* :mod:`~evomerge.methods.nuslerp`: the arc between two models or two task vectors, by weights.
* :mod:`~evomerge.methods.opcm`: experts join one by one, cleaned of the directions taken.
* :mod:`~evomerge.methods.passthrough`: one model, scaled.
* :mod:`~evomerge.methods.pcb`: entries compete by size and agreement.
* :mod:`~evomerge.methods.ram`: task vectors averaged over those that changed an entry.
* :mod:`~evomerge.methods.sce`: select by variance, weigh by energy, erase minorities.
* :mod:`~evomerge.methods.slerp`: the arc between two models.
* :mod:`~evomerge.methods.task_arithmetic`: base plus scaled task vectors.
* :mod:`~evomerge.methods.sparse`: merges of pruned task vectors, on
  :mod:`~evomerge.methods.ranks` and :mod:`~evomerge.methods.sparse_kernel`:
  :mod:`~evomerge.methods.ties`, :mod:`~evomerge.methods.dare`, :mod:`~evomerge.methods.della`,
  :mod:`~evomerge.methods.breadcrumbs`.
* :mod:`~evomerge.methods.tsv`: leading singular vectors, made orthogonal over the experts.
* :mod:`~evomerge.methods.widen`: columns weighed by how far they moved.
* :mod:`~evomerge.methods.wudi`: the task vector that disturbs the experts' inputs least.

To add one: write the file, add a line below, add ``search_spaces/<name>.yaml``; the contract suite
in ``tests/methods`` finds it here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from evomerge.errors import ConfigError, unknown_name
from evomerge.methods.arcee_fusion import ArceeFusion
from evomerge.methods.base import Basis, MergeMethod, Parameter, Scalar, Sources
from evomerge.methods.breadcrumbs import BREADCRUMBS, BREADCRUMBS_TIES
from evomerge.methods.consensus import Consensus
from evomerge.methods.dare import DARE_LINEAR, DARE_TIES
from evomerge.methods.della import DELLA, DELLA_LINEAR
from evomerge.methods.doge import Doge
from evomerge.methods.iso_c import IsotropicCommon
from evomerge.methods.karcher import Karcher
from evomerge.methods.linear import Linear
from evomerge.methods.localize_stitch import LocalizeStitch
from evomerge.methods.metric_average import MetricAverage
from evomerge.methods.model_stock import ModelStock
from evomerge.methods.multislerp import MultiSlerp
from evomerge.methods.nearswap import NearSwap
from evomerge.methods.nuslerp import NuSlerp
from evomerge.methods.opcm import Opcm
from evomerge.methods.passthrough import Passthrough
from evomerge.methods.pcb import ParameterCompetition
from evomerge.methods.ram import Ram, RamPlus
from evomerge.methods.rounding import ROUNDINGS
from evomerge.methods.sce import Sce
from evomerge.methods.slerp import Slerp
from evomerge.methods.task_arithmetic import TaskArithmetic
from evomerge.methods.ties import TIES
from evomerge.methods.tsv import TaskSingularVectors
from evomerge.methods.widen import Widen
from evomerge.methods.wudi import Wudi

_ALL: tuple[MergeMethod, ...] = (
    Linear(),
    TaskArithmetic(),
    Slerp(),
    NuSlerp(),
    MultiSlerp(),
    Karcher(),
    ModelStock(),
    Sce(),
    Ram(),
    RamPlus(),
    NearSwap(),
    ArceeFusion(),
    Passthrough(),
    TIES,
    DARE_LINEAR,
    DARE_TIES,
    DELLA,
    DELLA_LINEAR,
    BREADCRUMBS,
    BREADCRUMBS_TIES,
    TaskSingularVectors(),
    ParameterCompetition(),
    Consensus(),
    LocalizeStitch(),
    Wudi(),
    IsotropicCommon(),
    Widen(),
    Opcm(),
    Doge(),
    MetricAverage(),
)
METHODS: dict[str, MergeMethod] = {m.name: m for m in _ALL}

EVERY_METHOD: dict[str, Scalar] = {"rounding": "nearest"}
"""Fixed settings that every method has, carried out by whoever writes the merged tensor."""

__all__ = [
    "EVERY_METHOD",
    "METHODS",
    "Basis",
    "MergeMethod",
    "Parameter",
    "Sources",
    "check_range",
    "check_settings",
    "experts_taken",
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


def check_settings(
    name: str, fixed: Mapping[str, Scalar], *, has_base: bool, n_experts: int
) -> None:
    """Checks what a method is given before anything expensive.

    Args:
        name: The method.
        fixed: Its settings that are not searched.
        has_base: Whether there is a base model.
        n_experts: Number of experts, the base not counted.

    Raises:
        UnknownNameError: No such method.
        ConfigError: An unknown setting, no base where one is needed, or too few or too many
            experts.
    """
    chosen, known = method(name), usual_settings(name)
    for key in fixed:
        if key not in known:
            raise ConfigError(
                f"fixed.{key}: merge method {name!r} has no such setting; it has {sorted(known)}."
            )
        _check_type(key, fixed[key], known[key])
    if fixed.get("rounding", "nearest") not in ROUNDINGS:
        raise unknown_name("value of fixed.rounding", str(fixed["rounding"]), ROUNDINGS)
    chosen.survey(iter(()), {**known, **fixed})  # of no tensors: it looks at the settings only
    on_task_vectors = bool({**known, **fixed}.get("task_vectors", chosen.needs_base))
    if on_task_vectors and not has_base:
        raise ConfigError(
            f"merge method {name!r} works on task vectors and needs models.base; give one, or "
            + (
                "choose a method without a base, such as 'linear'."
                if chosen.needs_base
                else "set fixed.task_vectors to false."
            )
        )
    fewest, most = chosen.n_experts
    if n_experts < fewest or (most is not None and n_experts > most):
        raise ConfigError(
            f"merge method {name!r} takes {experts_taken(chosen)}"
            f"{' beside the base' if chosen.needs_base else ''}, got {n_experts}; "
            f"{'list fewer' if most is not None and n_experts > most else 'list more'} under "
            "models.experts, or choose another method (`evomerge list methods`)."
        )


def check_range(where: str, parameter: Parameter, low: float, high: float) -> None:
    """Raises ConfigError unless all values between ``low`` and ``high`` make sense."""
    if low < parameter.least or high > parameter.most:
        value = low if low < parameter.least else high
        raise ConfigError(
            f"{where}: expected values from {parameter.least:g} to {parameter.most:g} "
            f"({parameter.doc}), got {value:g}."
        )


def _check_type(key: str, value: Scalar, usual: Scalar) -> None:
    """Raises ConfigError where a setting is not of its default's kind: "no" is not false."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(usual, bool):
        fits, wanted = isinstance(value, bool), "true or false"
    elif isinstance(usual, int):
        fits, wanted = isinstance(value, int) and number, "an integer"
    elif isinstance(usual, float):
        fits, wanted = number and math.isfinite(float(value)), "a number"
    else:
        return  # words are the method's own to read
    if not fits:
        raise ConfigError(f"fixed.{key}: expected {wanted}, got {value!r}.")


def experts_taken(chosen: MergeMethod) -> str:
    """How many experts a method takes, in words: ``"exactly 2 experts"``."""
    fewest, most = chosen.n_experts
    if most is None:
        return f"{fewest} or more experts"
    if fewest == most:
        return f"exactly {most} expert{'s' if most != 1 else ''}"
    return f"{fewest} to {most} experts"
