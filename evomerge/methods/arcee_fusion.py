"""Arcee Fusion: the expert's most important changes on top of the base.

An entry's importance is ``|W_1 - W_0| KL_row`` with ``KL_row`` the Kullback-Leibler divergence
between the softmax of its row in the expert and in the base. Entries whose importance reaches
``median + spread (q75 - q25)`` of the tensor take ``lambda`` times the change, the rest stay the
base's. mergekit has ``spread`` 1.5 and ``lambda`` 1.

Source: mergekit's ``arcee_fusion`` (arcee.ai).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from evomerge.errors import ConfigError
from evomerge.methods.base import Basis, Parameter, Scalar, Sources
from evomerge.methods.counter import bits, key
from evomerge.methods.parts import row_parts, wide_dtype

_SAMPLE = 1_000_000
"""Entries that a larger tensor's quartiles are taken from, as in mergekit."""
_EPS = 1e-8
_PRECISIONS: dict[Scalar, torch.dtype] = {"float64": torch.float64, "float32": torch.float32}
"""Of the divergence, which is smaller than fp32's rounding where models are near."""


class ArceeFusion:
    """``W = W_0 + lambda [importance >= threshold] (W_1 - W_0)`` of a base and one expert."""

    name = "arcee_fusion"
    needs_base = True
    n_experts: tuple[int, int | None] = (1, 1)
    parameters: Mapping[str, Parameter] = {
        "lambda": Parameter(0.0, 2.0, 1.0, "scale of what is taken; mergekit: 1", shared=True),
        "spread": Parameter(
            0.0, 3.0, 1.5, "interquartile ranges above the median; mergekit: 1.5", shared=True
        ),
    }
    fixed: Mapping[str, Scalar] = {"divergence": "float64"}

    def survey(self, tensors: Iterable[Sources], fixed: Mapping[str, Scalar]) -> None:
        """Nothing to survey; checks the settings."""
        if fixed["divergence"] not in _PRECISIONS:
            raise ConfigError(
                f"arcee_fusion: fixed.divergence is {fixed['divergence']!r}; expected float64, or "
                "float32 as mergekit has it."
            )

    def prepare(self, sources: Sources, survey: None, fixed: Mapping[str, Scalar]) -> Basis:
        """Base and expert, the divergence of every row, and the quartiles of the importance."""
        if sources.base is None:
            raise ConfigError("arcee_fusion needs a base model; set models.base.")
        precision = _PRECISIONS[fixed["divergence"]]
        tensors = (sources.base, sources.experts[0])
        base, expert = (_rows(t) for t in tensors)
        divergence = torch.empty(len(base), 1, dtype=wide_dtype(base), device=base.device)
        for part in row_parts(base):
            p, q = (torch.softmax(t[part].to(precision), -1) + _EPS for t in (expert, base))
            divergence[part] = (p * (p / q).log()).sum(-1, keepdim=True)
        quartiles = _quartiles(base, expert, divergence, sources.name)
        return Basis((*tensors, divergence), quartiles)

    def combine(
        self,
        out: torch.Tensor,
        basis: Basis,
        coefficients: Mapping[str, Sequence[float]],
        fixed: Mapping[str, Scalar],
    ) -> None:
        """Writes the merge."""
        low, median, high = basis.extra
        threshold = median + coefficients["spread"][0] * (high - low)
        scale = coefficients["lambda"][0]
        base, expert, divergence = basis.tensors
        wide = wide_dtype(base)  # importance as prepare computes it, whatever out is
        rows, first, second = _rows(out), _rows(base), _rows(expert)
        for part in row_parts(rows):
            origin = first[part].to(wide)
            delta = second[part].to(wide) - origin
            taken = delta.abs().mul_(divergence[part]) >= threshold
            rows[part].copy_(torch.addcmul(origin, delta, taken.to(wide), value=scale))


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """(rows, length of the last dimension), a view."""
    return tensor.flatten(0, -2) if tensor.dim() > 1 else tensor.view(1, -1)


def _quartiles(
    base: torch.Tensor, expert: torch.Tensor, divergence: torch.Tensor, name: str
) -> tuple[float, float, float]:
    """Quartiles of the importance: of a sample, the same on every machine, where there is more."""
    n, width, wide = base.numel(), base.shape[1], wide_dtype(base)
    if n == 0:
        return 0.0, 0.0, 0.0
    if n > _SAMPLE:
        random = bits(key("arcee_fusion", name), 0, _SAMPLE, base.device).long() & 0x7FFFFFFF
        places = (random * n) >> 31
        flat = (expert.reshape(-1)[places].to(wide) - base.reshape(-1)[places].to(wide)).abs()
        values = flat * divergence.view(-1)[places // width]
    else:
        values = ((expert.to(wide) - base.to(wide)).abs() * divergence).view(-1)
    ordered = values.sort().values
    first, second, third = (float(ordered[int(q * (len(ordered) - 1))]) for q in (0.25, 0.5, 0.75))
    return first, second, third
