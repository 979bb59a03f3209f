"""Objectives that are read off the weights: how far a merge is from the base.

``distance`` is ``||W - W_0|| / ||W_0||`` over all merged tensors (Frobenius norms), 0 for the
base itself. As a second objective it asks for the smallest change that does the job; as a bound
it keeps a search near models that are known to behave. MM-MO (arXiv:2407.00487) minimises the L1
form.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evomerge.errors import ConfigError, StudyError, unknown_name
from evomerge.experts import ExpertPool
from evomerge.racing import Bar
from evomerge.recipe import Recipe
from evomerge.trial import Objective, Scores, Split

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS = "weights"
"""What an objective calls its task to be scored here."""
METRICS = ("distance",)
_CHUNK = 2**22
"""Entries compared at a time: the temporaries stay small."""


class Weights:
    """Scores objectives with ``task: weights``.

    Args:
        objectives: What to score; all with task ``weights``.
        pool: The models; must have a base.

    Raises:
        UnknownNameError: An unknown metric.
        ConfigError: No base, or a direction other than ``minimize``.
    """

    def __init__(self, objectives: Sequence[Objective], pool: ExpertPool) -> None:
        for o in objectives:
            if o.metric not in METRICS:
                raise unknown_name("metric", o.metric, METRICS, f"(objective {o.name!r})")
            if o.direction != "minimize":
                raise ConfigError(
                    f"objective {o.name!r}: the distance from the base is better when lower; "
                    "write direction: minimize."
                )
        if pool.base is None:
            raise ConfigError(
                f"objective {objectives[0].name!r}: the distance from the base needs models.base."
            )
        self.objectives = tuple(objectives)
        self._pool = pool
        self._pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._norm = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Plain data: a worker maps the base itself."""
        return self.__dict__ | {"_pairs": [], "_norm": 0.0}

    def prepare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Pairs live tensors with the base's: mapped on a CPU, one more copy on a GPU."""
        import torch

        from evomerge.placement import place

        del tokenizer
        base = self._pool.base
        assert base is not None  # noqa: S101 - checked when built
        live = place(model, self._pool)
        self._pairs = [(t, base.tensor(name).to(t.device)) for name, t in live.items()]
        with torch.inference_mode():
            self._norm = _norm(b for _, b in self._pairs)

    def evaluate(
        self, model: PreTrainedModel, recipe: Recipe, split: Split, bar: Bar | None = None
    ) -> Scores:
        """Compares the weights that are in the live model now with the base's.

        Args:
            model: The model given to :meth:`prepare`.
            recipe: Not looked at.
            split: Decides only which objectives are asked for.
            bar: Not looked at: there is nothing to save.

        Raises:
            StudyError: Before :meth:`prepare`.
            FloatingPointError: Weights that are not finite.
        """
        import torch

        del model, recipe, bar
        if not self._pairs:
            raise StudyError("Weights.evaluate was called before prepare.")
        start = time.perf_counter()
        with torch.inference_mode():
            gaps = (
                t.view(-1)[i : i + _CHUNK].float() - b.view(-1)[i : i + _CHUNK].float()
                for t, b in self._pairs
                for i in range(0, t.numel(), _CHUNK)
            )
            distance = _norm(gaps) / self._norm if self._norm else 0.0
        asked = [o for o in self.objectives if o.guides or split == "test"]
        if not math.isfinite(distance):
            raise FloatingPointError("the merged weights are not finite.")
        return Scores(
            {o.name: o.sign * distance for o in asked},
            {o.name: 0.0 for o in asked},
            {o.name: None for o in asked},
            {"score": time.perf_counter() - start},
        )

    def documents(self, split: Split) -> Mapping[str, int]:
        """None: weights answer no documents."""
        del split
        return {}

    def fingerprint(self) -> Mapping[str, Any]:
        """Which metrics are read."""
        return {"weights": [[o.name, o.metric, o.guides] for o in self.objectives]}

    def scores_depend_on(self, split: Split) -> Mapping[str, Any]:
        """The base, and which metrics are read on a split."""
        assert self._pool.base is not None  # noqa: S101 - checked when built
        asked = [[o.name, o.metric] for o in self.objectives if o.guides or split == "test"]
        return {"weights": asked, "base": self._pool.base.content}


def _norm(parts: Any) -> float:
    """Frobenius norm of all parts together; one synchronisation on a GPU."""
    import torch

    squares = [part.float().square().sum(dtype=torch.float64) for part in parts]
    return float(torch.stack(squares).sum().sqrt())
