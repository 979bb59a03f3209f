"""Singular vectors and polar factors by Gram matrices."""

from __future__ import annotations

import pytest
import torch

from evomerge.methods.spectrum import polar_factor, singular_vectors
from tests.methods.merging import toy


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (1, 5), (5, 1), (1, 1)])
def test_equals_the_singular_value_decomposition(shape) -> None:
    matrix = toy(shape)[0]
    left, values, right = singular_vectors(matrix)
    torch.testing.assert_close(left @ torch.diag(values) @ right.T, matrix)
    torch.testing.assert_close(values, torch.linalg.svdvals(matrix))
    eye = torch.eye(len(values), dtype=torch.float64)
    torch.testing.assert_close(left.T @ left, eye)
    torch.testing.assert_close(right.T @ right, eye)


def test_leading_ones_only() -> None:
    matrix = toy((6, 9))[0]
    left, values, right = singular_vectors(matrix, 2)
    assert (left.shape, values.shape, right.shape) == ((6, 2), (2,), (9, 2))
    torch.testing.assert_close(values, torch.linalg.svdvals(matrix)[:2])


def test_small_singular_values_keep_their_digits() -> None:
    """A spectrum over five decades, as the Gram matrix sees ten."""
    left, right = (torch.linalg.qr(toy((8, 8), seed=s)[0]).Q for s in (1, 2))
    values = torch.logspace(0, -5, 8, dtype=torch.float64)
    found = singular_vectors(left @ torch.diag(values) @ right.T)
    torch.testing.assert_close(found[1], values, rtol=1e-5, atol=0)
    rebuilt = found[0] @ found[2].T
    torch.testing.assert_close(rebuilt, left @ right.T, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_rank_is_relative(scale) -> None:
    low_rank = toy((6, 2))[0] @ toy((2, 9), seed=1)[0] * scale
    assert len(singular_vectors(low_rank)[1]) == 2
    assert len(singular_vectors(torch.zeros(6, 9))[1]) == 0


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_polar_factor_is_orthonormal_and_nearest(shape) -> None:
    matrix = toy(shape)[0]
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(polar_factor(matrix), u @ vh)


def test_polar_factor_makes_no_directions_up() -> None:
    column = toy((6, 1))[0]
    unit = column / column.norm()
    torch.testing.assert_close(
        polar_factor(torch.cat([unit, unit], 1)), torch.cat([unit, unit], 1) / 2**0.5
    )
    assert polar_factor(torch.zeros(4, 0, dtype=torch.float64)).shape == (4, 0)
