"""Links: what stands between a number that may be anything and a score that may not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from evomerge.recipe import Vector

_FLOOR = 1e-10
"""Smallest slope of a link."""


def _identity(eta: Vector) -> tuple[Vector, Vector]:
    slope: Vector = np.ones(eta.shape)
    return eta, slope


def _sigmoid(eta: Vector) -> tuple[Vector, Vector]:
    mean: Vector = 0.5 * (1.0 + np.tanh(0.5 * eta))
    slope: Vector = np.maximum(mean * (1.0 - mean), _FLOOR)
    return mean, slope


def _softplus(eta: Vector) -> tuple[Vector, Vector]:
    return np.logaddexp(0.0, eta), np.maximum(_sigmoid(eta)[0], _FLOOR)


def _dilogarithm(eta: Vector) -> Vector:
    """The integral of softplus: -Li2(-exp(eta))."""
    from scipy.special import spence

    found: Vector = -spence(1.0 + np.exp(np.minimum(eta, 30.0)))
    return np.where(eta > 30.0, 0.5 * eta**2 + np.pi**2 / 6, found)


LINKS: dict[str, Callable[[Vector], tuple[Vector, Vector]]] = {
    "identity": _identity, "sigmoid": _sigmoid, "softplus": _softplus,
}  # fmt: skip
"""eta -> (link, its derivative)."""
POTENTIALS: dict[str, Callable[[Vector], Vector]] = {
    "identity": lambda eta: 0.5 * eta**2,
    "sigmoid": lambda eta: np.logaddexp(0.0, eta),
    "softplus": _dilogarithm,
}
"""Integrals of the links: what makes the loss a matching one."""


def inverse_link(link: str, score: npt.ArrayLike, margin: float = 1e-6) -> Vector:
    """Where the link has that value, or one inside its range by ``margin``."""
    y = np.asarray(score, dtype=np.float64)
    if link == "sigmoid":
        y = np.clip(y, margin, 1.0 - margin)
        y = np.log(y / (1.0 - y))
    elif link == "softplus":
        y = np.maximum(y, margin)
        y = np.where(y > 30.0, y, np.log(np.expm1(np.minimum(y, 30.0))))
    return y


def allows(link: str, y: Vector) -> bool:
    """Whether scores can be values of that link."""
    if link == "sigmoid":
        return bool((y >= 0).all() and (y <= 1).all())
    return link == "identity" or bool((y > 0).all())
