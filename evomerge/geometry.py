"""Geometry: what a driver needs to know of the models, in numpy, without their weights.

Where a merge is linear, ``W = W_0 + sum_k c_gk B_k`` in every layer group g, a candidate is its
(G, K) coefficient matrix C, and every norm and angle between two candidates follows from the K x K
Gram matrices of the basis tensors in each group. So slerp between two merges, which M2N2 crosses
with, needs no weights at all.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import numpy.typing as npt

from evomerge.errors import ConfigError
from evomerge.recipe import Matrix, Vector

_EXACT = 1e-9
"""Largest relative error at which a coefficient matrix counts as one that the space has."""


@dataclasses.dataclass(frozen=True, eq=False)
class Geometry:
    """Inner products of the basis, and the map between points and coefficients.

    Attributes:
        grams: (G, K, K) inner products <B_j, B_k> of the basis tensors within each layer group;
            the basis is the experts (``linear``) or their task vectors (``task_arithmetic``).
        sizes: (G,) entries per group.
        matrix: (G * K, d) map from axis values to coefficients, row-major in (G, K).
        low: (d,) axis values at x = 0.
        high: (d,) axis values at x = 1.

    Raises:
        ConfigError: Shapes that do not fit together.
    """

    grams: npt.NDArray[np.float64]
    sizes: npt.NDArray[np.float64]
    matrix: Matrix
    low: Vector
    high: Vector

    def __post_init__(self) -> None:
        """Checks the shapes."""
        g, k = self.grams.shape[:2]
        d = len(self.low)
        expected = {
            "grams": ((g, k, k), self.grams.shape),
            "sizes": ((g,), self.sizes.shape),
            "matrix": ((g * k, d), self.matrix.shape),
            "high": ((d,), self.high.shape),
        }
        for name, (want, got) in expected.items():
            if want != got:
                raise ConfigError(f"geometry.{name}: expected shape {want}, got {got}.")

    @property
    def shape(self) -> tuple[int, int]:
        """(G groups, K basis tensors) of a coefficient matrix."""
        return self.grams.shape[0], self.grams.shape[1]

    @functools.cached_property
    def is_separable(self) -> bool:
        """Whether every layer group can be set alone, so that merges can be cut between groups.

        It is not where the space shares coefficients among groups (one per expert, a profile).
        """
        groups = np.linalg.matrix_rank(self.matrix.reshape(*self.shape, -1))
        return int(groups.sum()) == int(np.linalg.matrix_rank(self.matrix))

    def values(self, x: Vector) -> Vector:
        """(d,) axis values at a point (d,) of [0, 1]^d."""
        found: Vector = self.low + np.asarray(x, dtype=np.float64) * (self.high - self.low)
        return found

    def place(self, values: Vector) -> Vector | None:
        """The point (d,) of [0, 1]^d with these axis values, never clipped; None if outside."""
        x: Vector = (values - self.low) / (self.high - self.low)
        if not ((x >= -_EXACT) & (x <= 1 + _EXACT)).all():
            return None
        return np.clip(x, 0.0, 1.0)

    def coefficients(self, x: Vector) -> Matrix:
        """The (G, K) coefficients at a point (d,) of [0, 1]^d."""
        found: Matrix = (self.matrix @ self.values(x)).reshape(self.shape)
        return found

    def point(self, coefficients: Matrix) -> Vector | None:
        """The point (d,) with these coefficients, or None where the space has no such point.

        Args:
            coefficients: (G, K).

        Returns:
            A point of [0, 1]^d, never a clipped one.
        """
        target = np.asarray(coefficients, dtype=np.float64).reshape(-1)
        values = self._inverse @ target
        size = max(1.0, float(np.abs(target).max()))
        if np.abs(self.matrix @ values - target).max() > _EXACT * size:
            return None
        return self.place(values)

    @functools.cached_property
    def _inverse(self) -> Matrix:
        """(d, G * K) least-squares inverse of the map."""
        return np.asarray(np.linalg.pinv(self.matrix), dtype=np.float64)

    def inner(self, a: Matrix, b: Matrix) -> float:
        """<A, B> over all weights, of two candidates given by their (G, K) coefficients."""
        return float(((self.grams @ b[:, :, None])[:, :, 0] * a).sum())

    def angle(self, a: Matrix, b: Matrix) -> float:
        """Angle in [0, pi] between two candidates, over all weights; 0 where one of them is 0."""
        norms = np.sqrt(max(self.inner(a, a), 0.0) * max(self.inner(b, b), 0.0))
        if norms == 0:
            return 0.0
        return float(np.arccos(np.clip(self.inner(a, b) / norms, -1.0, 1.0)))
