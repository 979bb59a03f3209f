"""The arc between two directions: what slerp and nuslerp share."""

from __future__ import annotations

from typing import Any

import torch

_COLLINEAR = 1 - 1e-12
"""Cosine beyond which an arc has no direction of its own in float64."""


def cosine(gram: Any) -> torch.Tensor:
    """Cosines from (2, 2, ...) inner products; 0 where one of the two is zero.

    Returns:
        float64 of the trailing shape, in [-1, 1].
    """
    g = torch.as_tensor(gram, dtype=torch.float64)
    lengths = (g[0, 0] * g[1, 1]).sqrt()
    return torch.where(lengths > 0, g[0, 1] / lengths, 0.0).clamp(-1, 1)


def arc(cos: torch.Tensor, t: float, lerp_above: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Coefficients of the two ends at ``t`` (Shoemake 1985, "Animating rotation").

    ``sin((1 - t) a) / sin a`` and ``sin(t a) / sin a`` with ``a = acos(cos)``, and ``1 - t`` and
    ``t`` where ``|cos| > lerp_above`` or the two are (anti)parallel.

    Args:
        cos: Cosines, any shape.
        t: Position on the arc: 0 the first end, 1 the second.
        lerp_above: Cosine above which the arc is taken as straight.

    Returns:
        Both coefficients, shaped as ``cos``.
    """
    straight = cos.abs() > min(lerp_above, _COLLINEAR)
    angle = torch.acos(torch.where(straight, 0.0, cos))
    sine = torch.sin(angle)
    first = torch.where(straight, 1 - t, torch.sin((1 - t) * angle) / sine)
    second = torch.where(straight, t, torch.sin(t * angle) / sine)
    return first, second
