"""MAP's surrogate: a quadratic form behind a link.

Li et al. (2024), "MAP: Low-compute model merging with amortized Pareto fronts via quadratic
approximation", arXiv:2406.07529, models every metric as ``link(e + b'c + c'A c)``.

* The form is full, diagonal (no products of two coordinates) or linear; the link is the identity,
  the sigmoid (shares in [0, 1]) or softplus (positive losses).
* The fit minimises the link's *matching loss*, whose derivative is ``link(eta) - y``, plus a
  ridge: squared error for the identity, cross-entropy for the sigmoid. It is convex for every
  increasing link (Auer, Herbster & Warmuth 1996, "Exponentially many local minima for single
  neurons"), so Newton's method finds the one minimum from anywhere; least squares on a sigmoid has
  collapsed to flat fits. For scores that are exactly of the form, both have the same minimum.
* The ridge is the one with the smallest leave-one-out error: exact for the identity, one Newton
  step for the others (Rad & Maleki 2020, "A scalable estimate of the out-of-sample prediction
  error via approximate leave-one-out cross-validation", JRSS B 82(4)).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from evomerge.optimizers.links import LINKS, POTENTIALS, inverse_link
from evomerge.recipe import Matrix, Vector

FORMS = ("full", "diagonal", "linear")

_RIDGES = (1e-8, 1e-5, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridges tried; the coordinates run from -1 to 1, and scores are of order 1."""
_NEWTON_STEPS = 30
_FLOOR = 1e-10
"""Smallest denominator in a leave-one-out formula."""


def n_terms(form: str, dim: int) -> int:
    """Number of coefficients of a quadratic form in d coordinates, the constant among them."""
    counts = {"full": (dim + 1) * (dim + 2) // 2, "diagonal": 2 * dim + 1, "linear": dim + 1}
    return counts[form]


@dataclasses.dataclass(frozen=True, eq=False)
class QuadraticForm:
    """``unit * link(terms(x) @ w) + zero``.

    Attributes:
        name: Form and link.
        left_out: (n,) the score of each fitted point, predicted from all the others.
    """

    name: str
    left_out: Vector
    _by: Terms
    _link: str
    _zero: float
    _unit: float
    _w: Vector
    _covariance: Matrix

    @classmethod
    def fit(cls, terms: Terms, X: Matrix, y: Vector, link: str) -> QuadraticForm:
        """The fit whose ridge has the smallest leave-one-out error.

        Args:
            terms: Made of the same points.
            X: (n, d).
            y: (n,) scores that the link allows.
            link: A key of :data:`evomerge.optimizers.links.LINKS`.
        """
        zero, unit = 0.0, 1.0
        if link == "identity":
            zero, unit = float(y.mean()), float(y.std())
        Z, target = terms(X), (y - zero) / unit
        w = np.zeros(Z.shape[1])
        w[0] = inverse_link(link, target.mean())
        smallest, found = np.inf, (target, w, np.eye(len(w)))
        for ridge in sorted(_RIDGES, reverse=True):
            w, inverse = _newton(Z, target, w, link, ridge)
            eta = Z @ w
            mean, slope = LINKS[link](eta)
            leverage = np.einsum("ij,jk,ik->i", Z, inverse, Z)
            moved = leverage * (mean - target) / np.maximum(1 - slope * leverage, _FLOOR)
            left_out = LINKS[link](eta + moved)[0]
            error = float(np.mean((target - left_out) ** 2))
            if error < smallest:
                # Scores vary around the fit by dispersion * slope, as shares of n documents do.
                dispersion = error / max(float(slope.mean()), _FLOOR)
                smallest, found = error, (left_out, w, inverse * dispersion)
        shape = "linear" if terms.form == "linear" else f"{terms.form} quadratic"
        left_out, w, covariance = found
        left_out = zero + unit * left_out
        return cls(f"{shape}, {link}", left_out, terms, link, zero, unit, w, covariance)

    def predict(self, X: Matrix) -> tuple[Vector, Vector]:
        """Mean (k,) and standard deviation (k,) of the score at points (k, d)."""
        Z = self._by(X)
        mean, slope = LINKS[self._link](Z @ self._w)
        variance = np.einsum("ij,jk,ik->i", Z, self._covariance, Z)
        std = slope * np.sqrt(np.maximum(variance, 0.0))
        return self._zero + self._unit * mean, self._unit * std


def _newton(Z: Matrix, y: Vector, w: Vector, link: str, ridge: float) -> tuple[Vector, Matrix]:
    """Minimum of the matching loss plus ridge / 2 |w|^2, the constant w[0] free.

    Returns:
        w, and the inverse Hessian there.
    """
    function, potential = LINKS[link], POTENTIALS[link]
    penalty = np.full(len(w), ridge)
    penalty[0] = 1e-10

    def loss(w: Vector) -> float:
        eta = Z @ w
        return float((potential(eta) - y * eta).sum() + 0.5 * (penalty * w * w).sum())

    value = loss(w)
    for _ in range(_NEWTON_STEPS):
        mean, slope = function(Z @ w)
        gradient = Z.T @ (mean - y) + penalty * w
        hessian = (Z * slope[:, None]).T @ Z + np.diag(penalty)
        step = np.linalg.solve(hessian, gradient)
        decrement = float(gradient @ step)
        if not decrement > 1e-14 * len(y):
            break
        size = 1.0
        while size > 1e-4:
            new = loss(w - size * step)
            if new <= value - 0.1 * size * decrement:
                break
            size /= 2
        else:
            break
        w, value = w - size * step, new
    slope = function(Z @ w)[1]
    hessian = (Z * slope[:, None]).T @ Z + np.diag(penalty)
    return w, np.asarray(np.linalg.inv(hessian), dtype=np.float64)


@dataclasses.dataclass(frozen=True, eq=False)
class Terms:
    """Terms of a quadratic form, centred and rotated onto the directions that the points span.

    A ridge does not notice a rotation, so n points need no more than n - 1 directions, however
    many terms there are.
    """

    form: str
    centre: Vector
    rotation: Matrix

    @classmethod
    def fit(cls, X: Matrix, form: str) -> Terms:
        """The terms of a form of :data:`FORMS`, centred and rotated for points (n, d)."""
        T = _terms(X, form)
        centre = T.mean(axis=0)
        rotation = np.linalg.svd(T - centre, full_matrices=False)[2].T
        return cls(form, centre, rotation)

    def __call__(self, X: Matrix) -> Matrix:
        """(k, r + 1): a one, and the directions."""
        rotated = (_terms(X, self.form) - self.centre) @ self.rotation
        return np.column_stack([np.ones(len(X)), rotated])


def _terms(X: Matrix, form: str) -> Matrix:
    """(k, p) products of the coordinates, which run from -1 to 1 here, without the constant."""
    Z = 2.0 * X - 1.0
    if form == "linear":
        return Z
    if form == "diagonal":
        return np.hstack([Z, Z**2])
    i, j = np.triu_indices(Z.shape[1])
    return np.hstack([Z, Z[:, i] * Z[:, j]])
