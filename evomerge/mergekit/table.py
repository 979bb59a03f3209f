"""What mergekit 0.1.5 calls things: one row per merge method that both programs have.

A row tells mergekit's side only. Whether a name is searched or fixed here is read off
:data:`evomerge.methods.METHODS`, and a row counts once the method is there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from evomerge.methods import METHODS as OURS
from evomerge.recipe import Scalar

Base = Literal["origin", "optional", "mixed", "first"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One method of mergekit's.

    Attributes:
        per_model: Parameters with a value per model to their defaults; None: must be given.
        shared: Parameters with one value for all models, likewise.
        base: What ``base_model`` is: the ``origin`` of task vectors, that only where it is given
            (``optional``), one of the models that are merged (``mixed``), or the ``first`` of two.
        only: Our parameters that mergekit lacks, to the one value that it computes with.
        equal: Our per-expert parameters that mergekit lacks: all experts alike.
        constants: Our settings that mergekit has no name for, to what it does.
        minor: The same where it matters for tiny or equal changes only: told in a comment.
        words: Settings that are spelled otherwise: our value to mergekit's.
        differs: What mergekit computes differently on the same settings.
    """

    per_model: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    shared: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    base: Base = "origin"
    only: Mapping[str, float] = dataclasses.field(default_factory=dict)
    equal: tuple[str, ...] = ()
    constants: Mapping[str, Scalar] = dataclasses.field(default_factory=dict)
    minor: Mapping[str, Scalar] = dataclasses.field(default_factory=dict)
    words: Mapping[str, Mapping[Scalar, Scalar]] = dataclasses.field(default_factory=dict)
    differs: str = ""

    @property
    def parameters(self) -> dict[str, float | None]:
        """Every parameter that mergekit knows."""
        return {**self.per_model, **self.shared}


_RESCALE: dict[Scalar, Scalar] = {"none": False, "l1": True, "1/p": True}
_MASKS = "mergekit draws its random masks anew in every merge, and rescales by the L1 norm."


def _sparse(
    *,
    normalize: bool,
    rescale: bool,
    elects: bool,
    ranks: bool = False,
    differs: str = "",
    **more: float,
) -> Row:
    """A row of mergekit's generalised task arithmetic."""
    return Row(
        per_model={"weight": None, "density": 1.0, **more},
        shared={"normalize": normalize, "rescale": rescale, "lambda": 1.0},
        constants={"election": "weighted"} if elects else {},
        minor={"equal": "torch"} if ranks else {},
        words={"rescale": _RESCALE},
        differs=differs,
    )


_ROWS: dict[str, Row] = {
    "linear": Row({"weight": None}, {"normalize": True}, "mixed"),
    "task_arithmetic": Row(
        {"weight": None}, {"normalize": False, "lambda": 1.0}, constants={"norms": "own"}
    ),
    "slerp": Row(shared={"t": None}, base="first", constants={"lerp_above": 0.9995}),
    "nuslerp": Row(
        {"weight": None}, {"nuslerp_row_wise": False, "nuslerp_flatten": True}, "optional"
    ),
    "multislerp": Row({"weight": None}, {"normalize_weights": True}, "optional"),
    "karcher": Row(shared={"max_iter": 10, "tol": 1e-5}, base="mixed", equal=("weight",)),
    "model_stock": Row(shared={"filter_wise": False}, only={"lambda": 1.0}, minor={"floor": 1e-6}),
    "sce": Row(
        shared={"select_topk": 1.0}, only={"lambda": 1.0}, minor={"floor": 1e-6, "equal": "torch"}
    ),
    "ram": Row(shared={"epsilon": 1e-5}, only={"weight": 1.0}),
    "ramplus_tl": Row(shared={"r": 0.1, "alpha": 0.2, "epsilon": 1e-5}, only={"weight": 1.0}),
    "nearswap": Row(shared={"t": None}),
    "arcee_fusion": Row(only={"lambda": 1.0, "spread": 1.5}, minor={"divergence": "float32"}),
    "passthrough": Row({"scale": 1.0}, base="mixed"),
    "ties": _sparse(normalize=True, rescale=False, elects=True, ranks=True),
    "dare_linear": _sparse(normalize=False, rescale=True, elects=False, differs=_MASKS),
    "dare_ties": _sparse(normalize=False, rescale=True, elects=True, differs=_MASKS),
    "della": _sparse(normalize=True, rescale=True, elects=True, differs=_MASKS, epsilon=0.15),
    "della_linear": _sparse(
        normalize=False, rescale=True, elects=False, differs=_MASKS, epsilon=0.15
    ),
    "breadcrumbs": _sparse(normalize=False, rescale=False, elects=False, ranks=True, gamma=0.01),
    "breadcrumbs_ties": _sparse(
        normalize=False, rescale=False, elects=True, ranks=True, gamma=0.01
    ),
}
METHODS: dict[str, Row] = {name: row for name, row in _ROWS.items() if name in OURS}
"""The merge methods that both programs compute alike."""

FOLDED = ("normalize", "lambda")
"""Parameters of a weighted sum of task vectors that only scale its weights: ``task_arithmetic``
has neither, since the weights can say it."""

ABSENT_IS_ZERO = (
    "linear",
    "task_arithmetic",
    *(n for n in _ROWS if "density" in _ROWS[n].per_model),
)
"""Methods where a model that a slice leaves out is one of weight 0."""
