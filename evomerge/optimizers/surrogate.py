"""The surrogate of one score: the best of several models by leave-one-out error.

The models are :mod:`evomerge.optimizers.quadratic_form`, MAP's own, and
:mod:`evomerge.optimizers.gaussian_process`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from evomerge.optimizers.gaussian_process import GaussianProcess
from evomerge.optimizers.links import LINKS, allows
from evomerge.optimizers.quadratic_form import FORMS, QuadraticForm, Terms, n_terms
from evomerge.recipe import Matrix, Vector

KINDS = (*FORMS, "gp")
CONSTANT = "constant"
"""Name of the surrogate of a score that is the same everywhere, as far as one can tell."""


_CLEARLY = 0.5
"""A form is taken where its squared error, each point left out in turn, is less than this share
of the process's. Equal errors promise less of a form: its ridge and terms were chosen by them, and
far from the data it does not fall back. On the digits merge (``benchmarks/map_digits.py``, seeds
100 to 109) 0.5 gave 0.911 of the grid's hypervolume at 50 trials on average, 0.8 gave 0.896."""


class Model(Protocol):
    """Something fitted to scores."""

    @property
    def name(self) -> str:
        """What it is, for people: ``"full quadratic, sigmoid"``."""
        ...

    @property
    def left_out(self) -> Vector:
        """(n,) the score of each fitted point, predicted from all the others."""
        ...

    def predict(self, X: Matrix) -> tuple[Vector, Vector]:
        """Mean (k,) and standard deviation (k,) of the score at points (k, d)."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Surrogate:
    """The model that was chosen.

    Attributes:
        name: The model's.
        r2: Leave-one-out R2: 1 is perfect, 0 no better than the mean of the others.
    """

    name: str
    r2: float
    _model: Model

    def predict(self, X: Matrix) -> tuple[Vector, Vector]:
        """Mean (k,) and standard deviation (k,) of the score at points (k, d)."""
        return self._model.predict(X)


def fit(
    X: Matrix, y: Vector, *, kinds: Sequence[str] = KINDS, links: Sequence[str] = tuple(LINKS)
) -> Surrogate:
    """The best model by leave-one-out error; a form only where it is clearly better.

    Args:
        X: (n, d) points of [0, 1]^d, n >= 1.
        y: (n,) finite scores; a softplus link is for positive ones, a sigmoid for [0, 1], and a
            link that does not fit the scores is passed over.
        kinds: What to choose from: of :data:`KINDS`. A form with more than 2 n terms is left out,
            as is everything where n < 4 or all scores are equal; then the mean is what remains.
        links: Links to choose from: of :data:`evomerge.optimizers.links.LINKS`.

    Returns:
        The best Gaussian process by leave-one-out R2, or the best form where its unexplained share
        is less than half of that one's; where R2 is not positive, the mean.
    """
    flat = Surrogate(CONSTANT, 0.0, _Flat(float(np.mean(y)), float(np.std(y)), y))
    if len(y) < 4 or np.ptp(y) <= 1e-12 * max(1.0, float(np.abs(y).max())):
        return flat
    links = [link for link in links if allows(link, y)]
    forms: list[Model] = []
    processes: list[Model] = []
    with np.errstate(all="ignore"):
        for kind in kinds:
            if kind == "gp":
                processes += [GaussianProcess.fit(X, y, link) for link in links]
            elif n_terms(kind, X.shape[1]) <= 2 * len(y):
                terms = Terms.fit(X, kind)
                forms += [QuadraticForm.fit(terms, X, y, link) for link in links]
        form, process = _best(forms, y), _best(processes, y)
    if process is None or (form is not None and 1 - form.r2 < _CLEARLY * (1 - process.r2)):
        chosen = form
    else:
        chosen = process
    return flat if chosen is None or chosen.r2 <= 0 else chosen


def _best(models: Sequence[Model], y: Vector) -> Surrogate | None:
    """The one with the largest leave-one-out R2, if there is any."""
    found = [Surrogate(m.name, loo_r2(y, m.left_out), m) for m in models]
    return max(found, key=lambda s: s.r2, default=None)


def loo_r2(y: Vector, left_out: Vector) -> float:
    """Leave-one-out R2: 1 - squared error / squared error of the mean of the others; at most 1."""
    n = len(y)
    spread = float(((y - y.mean()) ** 2).sum()) * (n / (n - 1)) ** 2
    return 1.0 - float(((y - left_out) ** 2).sum()) / spread


@dataclasses.dataclass(frozen=True, eq=False)
class _Flat:
    """The same everywhere."""

    mean: float
    std: float
    left_out: Vector
    name: str = CONSTANT

    def predict(self, X: Matrix) -> tuple[Vector, Vector]:
        return np.full(len(X), self.mean), np.full(len(X), self.std)
