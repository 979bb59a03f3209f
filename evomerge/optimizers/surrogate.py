"""Surrogates of one score as a function of x: quadratic forms with a link, or a Gaussian process.

MAP (Li et al. 2024, "MAP: Low-compute model merging with amortized Pareto fronts via quadratic
approximation", arXiv:2406.07529) models every metric as ``link(e + b'c + c'A c)``. Here:

* The form is full, diagonal (no products of two coordinates) or linear; the link is the identity,
  the sigmoid (shares in [0, 1]) or softplus (positive losses).
* The fit minimises the link's *matching loss*, whose derivative is ``link(eta) - y``, and a ridge:
  squared error for the identity, cross-entropy for the sigmoid. It is convex for every increasing
  link (Auer, Herbster & Warmuth 1996, "Exponentially many local minima for single neurons"), so
  Newton's method finds the one minimum from anywhere; least squares on a sigmoid has collapsed to
  flat fits. A score that is exactly of the form has zero gradient at the truth either way.
* The ridge, the form and the link, or a Gaussian process instead (Matern 5/2 with one length per
  coordinate), are chosen by the leave-one-out error: exact for the identity and the process at its
  hyperparameters, one Newton step for the others (Rad & Maleki 2020, "A scalable estimate of the
  out-of-sample prediction error via approximate leave-one-out cross-validation", JRSS B 82(4)).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from evomerge.recipe import Matrix, Vector

FORMS = ("full", "diagonal", "linear")
LINKS = ("identity", "sigmoid", "softplus")
KINDS = (*FORMS, "gp")
CONSTANT = "constant"
"""Name of the surrogate of a score that is the same everywhere, as far as one can tell."""

_RIDGES = (1e-8, 1e-5, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridges tried; the coordinates run from -1 to 1, and scores are of order 1."""
_NEWTON_STEPS = 30
_FLOOR = 1e-10
"""Smallest denominator in a leave-one-out formula."""
_MAX_ARD = 40
"""Above this dimension a Gaussian process has one length for all coordinates."""
_NOISES = (1e-8, 1.0)
"""Range of a process's noise variance; scores are standardised."""


class Surrogate(Protocol):
    """A fitted model of one score.

    Attributes:
        name: What was chosen, for people: ``"full quadratic, sigmoid"``.
        r2: Leave-one-out R2: 1 is perfect, 0 no better than the mean of the others.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def r2(self) -> float: ...  # noqa: D102

    def predict(self, X: Matrix) -> tuple[Vector, Vector]:
        """Mean (k,) and standard deviation (k,) of the score at points (k, d)."""
        ...


def fit(
    X: Matrix, y: Vector, *, kinds: Sequence[str] = KINDS, links: Sequence[str] = LINKS
) -> Surrogate:
    """The surrogate with the smallest leave-one-out error.

    Args:
        X: (n, d) points of [0, 1]^d, n >= 1.
        y: (n,) finite scores; a softplus link is for positive ones, a sigmoid for [0, 1], and a
            link that does not fit the scores is passed over.
        kinds: What to choose from: of :data:`KINDS`. A form with more than 2 n terms is left out,
            as is everything where n < 4 or all scores are equal; then the mean is what remains.
        links: Links to choose from: of :data:`LINKS`.

    Returns:
        The best of them by leave-one-out R2, in the order of ``kinds`` where they tie; where none
        has a positive one, the mean.
    """
    flat = _Flat(float(np.mean(y)), float(np.std(y)))
    if len(y) < 4 or np.ptp(y) <= 1e-12 * max(1.0, float(np.abs(y).max())):
        return flat
    found: list[Surrogate] = []
    with np.errstate(all="ignore"):
        for kind in kinds:
            if kind == "gp":
                found.append(GaussianProcess.fit(X, y))
                continue
            if n_terms(kind, X.shape[1]) > 2 * len(y):
                continue
            terms = _Terms.fit(X, kind)
            found += [Quadratic.fit(terms, X, y, link) for link in links if _allows(link, y)]
    found = [s for s in found if s.r2 > 0]
    return max(found, key=lambda s: s.r2, default=flat)


def n_terms(form: str, dim: int) -> int:
    """Number of coefficients of a quadratic form in d coordinates, the constant among them."""
    counts = {"full": (dim + 1) * (dim + 2) // 2, "diagonal": 2 * dim + 1, "linear": dim + 1}
    return counts[form]


def loo_r2(y: Vector, left_out: Vector) -> float:
    """Leave-one-out R2.

    Args:
        y: (n,) scores, not all equal; n >= 2.
        left_out: (n,) the prediction of each from all the others.

    Returns:
        1 - squared error / squared error of the mean of the others; at most 1.
    """
    n = len(y)
    spread = float(((y - y.mean()) ** 2).sum()) * (n / (n - 1)) ** 2
    return 1.0 - float(((y - left_out) ** 2).sum()) / spread


@dataclasses.dataclass(frozen=True)
class _Flat:
    """A score that is the same everywhere, as far as one can tell."""

    mean: float
    std: float
    name: str = CONSTANT
    r2: float = 0.0

    def predict(self, X: Matrix) -> tuple[Vector, Vector]:
        return np.full(len(X), self.mean), np.full(len(X), self.std)


@dataclasses.dataclass(frozen=True, eq=False)
class _Terms:
    """Terms of a quadratic form, centred and rotated onto the directions that the points span.

    A ridge does not notice a rotation, so n points need no more than n - 1 directions, however
    many terms there are.
    """

    form: str
    centre: Vector
    rotation: Matrix

    @classmethod
    def fit(cls, X: Matrix, form: str) -> _Terms:
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


@dataclasses.dataclass(frozen=True, eq=False)
class Quadratic:
    """``unit * link(terms(x) @ w) + zero``.

    Attributes:
        name: Form and link.
        r2: Leave-one-out R2.
    """

    name: str
    r2: float
    _terms: _Terms
    _link: str
    _zero: float
    _unit: float
    _w: Vector
    _covariance: Matrix

    @classmethod
    def fit(cls, terms: _Terms, X: Matrix, y: Vector, link: str) -> Quadratic:
        """The fit whose ridge has the smallest leave-one-out error.

        Args:
            terms: Made of the same points.
            X: (n, d).
            y: (n,) scores that the link allows.
            link: One of :data:`LINKS`.
        """
        zero, unit = 0.0, 1.0
        if link == "identity":
            zero, unit = float(y.mean()), float(y.std())
        Z, target = terms(X), (y - zero) / unit
        w = np.zeros(Z.shape[1])
        w[0] = _inverse(link, float(target.mean()))
        best: tuple[float, Vector, Matrix] = (-np.inf, w, np.eye(len(w)))
        for ridge in sorted(_RIDGES, reverse=True):
            w, inverse = _newton(Z, target, w, link, ridge)
            eta = Z @ w
            mean, slope = _LINKS[link](eta)
            leverage = np.einsum("ij,jk,ik->i", Z, inverse, Z)
            moved = leverage * (mean - target) / np.maximum(1 - slope * leverage, _FLOOR)
            left_out = _LINKS[link](eta + moved)[0]
            r2 = loo_r2(target, left_out)
            if r2 > best[0]:
                # Scores vary around the fit by dispersion * slope, as shares of n documents do.
                dispersion = np.mean((target - left_out) ** 2) / max(slope.mean(), _FLOOR)
                best = (r2, w, inverse * dispersion)
        shape = "linear" if terms.form == "linear" else f"{terms.form} quadratic"
        return cls(f"{shape}, {link}", best[0], terms, link, zero, unit, best[1], best[2])

    def predict(self, X: Matrix) -> tuple[Vector, Vector]:
        """Mean (k,) and standard deviation (k,) of the score at points (k, d)."""
        Z = self._terms(X)
        mean, slope = _LINKS[self._link](Z @ self._w)
        variance = np.einsum("ij,jk,ik->i", Z, self._covariance, Z)
        std = slope * np.sqrt(np.maximum(variance, 0.0))
        return self._zero + self._unit * mean, self._unit * std


def _newton(Z: Matrix, y: Vector, w: Vector, link: str, ridge: float) -> tuple[Vector, Matrix]:
    """Minimum of the matching loss plus ridge / 2 |w|^2, the constant w[0] free.

    Returns:
        w, and the inverse Hessian there.
    """
    function, potential = _LINKS[link], _POTENTIALS[link]
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


_LINKS: dict[str, Callable[[Vector], tuple[Vector, Vector]]] = {
    "identity": _identity, "sigmoid": _sigmoid, "softplus": _softplus,
}  # fmt: skip
"""eta -> (link, its derivative)."""
_POTENTIALS: dict[str, Callable[[Vector], Vector]] = {
    "identity": lambda eta: 0.5 * eta**2,
    "sigmoid": lambda eta: np.logaddexp(0.0, eta),
    "softplus": _dilogarithm,
}
"""Integrals of the links: what makes the loss a matching one."""


def _inverse(link: str, mean: float) -> float:
    """Eta where the link has that value: the constant that Newton starts at."""
    if link == "sigmoid":
        return float(np.log(max(mean, 1e-6) / max(1.0 - mean, 1e-6)))
    if link == "softplus":
        return float(np.log(np.expm1(max(mean, 1e-6))))
    return mean


def _allows(link: str, y: Vector) -> bool:
    """Whether scores can be values of that link."""
    if link == "sigmoid":
        return bool((y >= 0).all() and (y <= 1).all())
    return link == "identity" or bool((y > 0).all())


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianProcess:
    """Matern 5/2 around a constant, at its most probable hyperparameters.

    Rasmussen & Williams (2006), "Gaussian processes for machine learning", sections 2.2, 4.2 and
    5.4. Lengths grow with sqrt(d) a priori: Hvarfner, Hellsten & Nardi (2024), "Vanilla Bayesian
    optimization performs great in high dimensions", arXiv:2402.02229.

    Attributes:
        name: ``"Gaussian process"``.
        r2: Leave-one-out R2 at these hyperparameters.
    """

    name: str
    r2: float
    _X: Matrix
    _lengths: Vector
    _signal: float
    _zero: float
    _unit: float
    _alpha: Vector
    _inverse: Matrix

    @classmethod
    def fit(cls, X: Matrix, y: Vector) -> GaussianProcess:
        """Most probable hyperparameters, by L-BFGS-B from one start.

        Args:
            X: (n, d).
            y: (n,) scores, not all equal.
        """
        from scipy.optimize import minimize

        d = X.shape[1]
        zero, unit = float(y.mean()), float(y.std())
        target = (y - zero) / unit
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
        left_out = target - alpha / np.maximum(np.diag(inverse), _FLOOR)
        r2 = loo_r2(target, left_out)
        return cls("Gaussian process", r2, X, lengths, signal, zero, unit, alpha, inverse)

    def predict(self, X: Matrix) -> tuple[Vector, Vector]:
        """Mean (k,) and standard deviation (k,) of the score, without noise, at points (k, d)."""
        k = self._signal * _matern(_squares(X, self._X, self._lengths))[0]
        variance = self._signal - np.einsum("ij,jk,ik->i", k, self._inverse, k)
        std = np.sqrt(np.maximum(variance, 0.0))
        return self._zero + self._unit * (k @ self._alpha), self._unit * std


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


def _evidence(X: Matrix, y: Vector, theta: Vector) -> tuple[float, npt.NDArray[np.float64]]:
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
