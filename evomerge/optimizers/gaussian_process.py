"""A Gaussian process behind a link: Matern 5/2, one length per coordinate.

Rasmussen & Williams (2006), "Gaussian processes for machine learning", sections 2.2, 4.2 and 5.4.
Lengths grow with sqrt(d) a priori: Hvarfner, Hellsten & Nardi (2024), "Vanilla Bayesian
optimization performs great in high dimensions", arXiv:2402.02229. The process models the link's
inverse of a score, as a warped process does (Snelson, Rasmussen & Ghahramani 2004): where merges
collapse, accuracies fall off a cliff, which is a slope in the logit.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from evomerge.optimizers.links import LINKS, inverse_link
from evomerge.recipe import Matrix, Vector

_MAX_ARD = 40
"""Above this dimension there is one length for all coordinates."""
_NOISES = (1e-8, 1.0)
"""Range of the noise variance; scores are standardised."""
_FLOOR = 1e-10
"""Smallest denominator in the leave-one-out formula, and smallest spread of the scores."""
_MARGIN = 0.03
"""A share this near to 0 or 1 counts as this: the logit has no value for them."""


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianProcess:
    """Matern 5/2 around a constant, at its most probable hyperparameters.

    Attributes:
        name: ``"Gaussian process"`` and the link.
        left_out: (n,) the score of each fitted point, predicted from all the others at these
            hyperparameters.
    """

    name: str
    left_out: Vector
    _link: str
    _X: Matrix
    _lengths: Vector
    _signal: float
    _zero: float
    _unit: float
    _alpha: Vector
    _inverse: Matrix

    @classmethod
    def fit(cls, X: Matrix, y: Vector, link: str) -> GaussianProcess:
        """Most probable hyperparameters, by L-BFGS-B from one start.

        Args:
            X: (n, d).
            y: (n,) scores that the link allows, not all equal.
            link: A key of :data:`evomerge.optimizers.links.LINKS`.
        """
        from scipy.optimize import minimize

        d = X.shape[1]
        eta = inverse_link(link, y, _MARGIN)
        zero, unit = float(eta.mean()), max(float(eta.std()), _FLOOR)
        target = (eta - zero) / unit
        n_lengths = d if d <= _MAX_ARD else 1
        prior = np.array([*[np.log(0.8 * np.sqrt(d))] * n_lengths, 0.5, np.log(1e-3)])
        widths = np.array([*[1.0] * n_lengths, 1.0, 2.0])
        limits = [
            *[(np.log(0.02), np.log(100.0 * np.sqrt(d)))] * n_lengths,
            (np.log(0.05), np.log(100.0)),
            (np.log(_NOISES[0]), np.log(_NOISES[1])),
        ]

        def loss(theta: Vector) -> tuple[float, Vector]:
            value, gradient = _evidence(X, target, theta)
            z = (theta - prior) / widths
            return value + 0.5 * float(z @ z), gradient + z / widths

        theta = minimize(
            loss, prior, jac=True, method="L-BFGS-B", bounds=limits, options={"maxiter": 40}
        ).x
        lengths, signal, noise = np.exp(theta[:-2]), float(np.exp(theta[-2])), np.exp(theta[-1])
        K = signal * _matern(_squares(X, X, lengths))[0] + noise * np.eye(len(X))
        inverse = np.linalg.inv(K)
        alpha = inverse @ target
        moved = unit * alpha / np.maximum(np.diag(inverse), _FLOOR)
        left_out = LINKS[link](eta - moved)[0]
        name = f"Gaussian process, {link}"
        return cls(name, left_out, link, X, lengths, signal, zero, unit, alpha, inverse)

    def predict(self, X: Matrix) -> tuple[Vector, Vector]:
        """Mean (k,) and standard deviation (k,) of the score, without noise, at points (k, d)."""
        k = self._signal * _matern(_squares(X, self._X, self._lengths))[0]
        variance = self._signal - np.einsum("ij,jk,ik->i", k, self._inverse, k)
        std = np.sqrt(np.maximum(variance, 0.0))
        mean, slope = LINKS[self._link](self._zero + self._unit * (k @ self._alpha))
        return mean, slope * self._unit * std


def _squares(A: Matrix, B: Matrix, lengths: Vector) -> Matrix:
    """Squared distances in units of the lengths."""
    a, b = A / lengths, B / lengths
    found: Matrix = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2.0 * a @ b.T
    return np.maximum(found, 0.0)


def _matern(squares: Matrix) -> tuple[Matrix, Matrix]:
    """Matern 5/2 correlation, and minus twice its derivative by the squared distance."""
    r = np.sqrt(5.0 * squares)
    decay = np.exp(-r)
    return (1.0 + r + 5.0 / 3.0 * squares) * decay, 5.0 / 3.0 * (1.0 + r) * decay


def _evidence(X: Matrix, y: Vector, theta: Vector) -> tuple[float, Vector]:
    """Minus the log evidence, and its gradient by log lengths, log signal and log noise."""
    from scipy.linalg import LinAlgError, cho_factor, cho_solve

    n = len(y)
    lengths, signal, noise = np.exp(theta[:-2]), np.exp(theta[-2]), np.exp(theta[-1])
    correlation, slope = _matern(_squares(X, X, lengths))
    K = signal * correlation + (noise + 1e-10) * np.eye(n)
    try:
        factor = cho_factor(K, lower=True)
    except LinAlgError:
        return 1e10, np.zeros_like(theta)
    alpha = cho_solve(factor, y)
    value = 0.5 * float(y @ alpha) + float(np.log(np.diag(factor[0])).sum())
    W = 0.5 * (cho_solve(factor, np.eye(n)) - np.outer(alpha, alpha))
    # d K / d log l_k = signal * slope * (x_k - x_k')^2 / l_k^2, summed against W by two products.
    M, S = W * slope * signal, X / lengths
    by_coordinate = 2.0 * ((M.sum(axis=1) @ (S * S)) - ((M @ S) * S).sum(axis=0))
    by_length = by_coordinate if len(lengths) > 1 else [by_coordinate.sum()]
    by_signal = signal * (W * correlation).sum()
    return value, np.array([*by_length, by_signal, noise * np.trace(W)])
