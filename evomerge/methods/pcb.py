"""PCB-Merging: entries compete by how large they are and how well the experts agree on them.

With ``T_i`` the flattened task vectors of K whole models and ``a_i`` their magnitudes, clipped to
their quantiles ``outliers`` and ``1 - outliers`` and scaled to [0, 1]:

    ``beta_i = exp(K a_i^2) * tanh(T_i sum_j T_j)``      (intra- times inter-balancing)
    ``S_i = (beta_i - q_i)_+ / (max beta_i - q_i)``      (q_i: quantile ``1 - ratio`` of beta_i)
    ``W = W_0 + sum_i w_i S_i T^_i / sum_j S_j``         (T^_i: the clipped task vector)

The directions ``S_i T^_i / sum_j S_j`` do not depend on the weights, so the merge is linear in
them. An entry that no expert keeps stays at the base. All quantiles are of the whole model, any
tensor alike; they are taken exactly, in two passes over the weights and a part, without a
flattened model.

Cost: the survey of three experts takes 65 ns per parameter on one core (7 s for 106M) and 80 MiB,
a 768 x 3072 tensor 0.1 s, once; the directions take as many bytes as the experts.

Source: Du et al. 2024, "Parameter Competition Balancing for Model Merging" (arXiv:2410.02396);
github.com/duguodong7/pcb-merging, ``pcb-merging.py``, which searches the weights
in [0.8, 1.3], the default range here. Not the vision script there, which takes the agreement of
scaled magnitudes and cuts outliers at 1%.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import torch

from evomerge.errors import ConfigError
from evomerge.methods import directions
from evomerge.methods.base import Basis, Parameter, Scalar, Sources
from evomerge.methods.order_statistics import order_statistics


@dataclasses.dataclass(frozen=True)
class _Survey:
    """Thresholds of the whole model; every attribute (K, 1) float64.

    Attributes:
        low: Magnitudes are clipped from below.
        high: And from above.
        kept: Balance that an entry must exceed.
        best: Largest balance.
    """

    low: torch.Tensor
    high: torch.Tensor
    kept: torch.Tensor
    best: torch.Tensor


class ParameterCompetition(directions.OnDirections):
    """``W = W_0 + sum_i w_i S_i T^_i / sum_j S_j``."""

    name = "pcb"
    parameters: Mapping[str, Parameter] = {
        "weight": Parameter(0.8, 1.3, 1.0, "scale of the expert's balanced task vector"),
    }
    fixed: Mapping[str, Scalar] = {
        "ratio": 0.1,  # of the entries that each expert keeps; the paper: 0.05 to 0.2
        "outliers": 0.0001,  # of the entries whose magnitude is clipped, on either side
    }

    def survey(self, tensors: Iterable[Sources], fixed: Mapping[str, Scalar]) -> _Survey:
        """Thresholds over all tensors.

        Raises:
            ConfigError: A ratio outside (0, 1], outliers outside [0, 0.5), or no base.
        """
        ratio, outliers = float(fixed["ratio"]), float(fixed["outliers"])
        if not (0.0 < ratio <= 1.0 and 0.0 <= outliers < 0.5):
            raise ConfigError(
                f"pcb: expected fixed.ratio in (0, 1] and fixed.outliers in [0, 0.5), got {ratio} "
                f"and {outliers}."
            )
        everything = [s for s in tensors if s.experts[0].numel()]
        n = sum(s.experts[0].numel() for s in everything)
        if n == 0:
            nothing = torch.zeros(0, 1)
            return _Survey(nothing, nothing, nothing, nothing)

        def deltas(step: int) -> Iterator[torch.Tensor]:
            return directions.task_vector_parts(everything, self.name, step)

        first = int(n * outliers)
        places = [first, max(int(n * (1 - outliers)) - 1, first)]
        low, high = order_statistics(
            lambda step: (d.abs_() for d in deltas(step)), n, places
        ).chunk(2, 1)
        places = [min(int(n * (1 - ratio)), n - 1), n - 1]
        kept, best = order_statistics(
            lambda step: (_balance(d, low, high) for d in deltas(step)), n, places
        ).chunk(2, 1)
        return _Survey(low, high, kept, best)

    def prepare(self, sources: Sources, survey: _Survey, fixed: Mapping[str, Scalar]) -> Basis:
        """Base and the balanced task vectors, normalised entry by entry."""

        def balanced(deltas: torch.Tensor) -> torch.Tensor:
            low, high, kept, best = (
                t.to(deltas.device, torch.float32)
                for t in (survey.low, survey.high, survey.kept, survey.best)
            )
            room = torch.where(best > kept, best - kept, 1.0)
            scores = _balance(deltas, low, high).sub_(kept).clamp_(min=0).div_(room)
            clipped = deltas.sign() * deltas.abs().clamp(low, high)
            return clipped.mul_(scores).div_(scores.sum(0).clamp_(min=1e-12))

        return directions.elementwise(sources, self.name, balanced)


def _balance(deltas: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """(K, n) how well each entry of each expert does: in (-e^K, e^K).

    In fp32 whatever the sources are: a score may be tiny and still be all that its entry has, so
    the entry that sets the threshold must be found at exactly 0.
    """
    narrow = deltas.float()
    low, high = low.to(narrow), high.to(narrow)
    room = torch.where(high > low, high - low, 1.0)
    size = narrow.abs().clamp_(low, high).sub_(low).div_(room)
    agreement = torch.tanh(narrow * narrow.sum(0))
    return size.square_().mul_(len(narrow)).exp_().mul_(agreement)
