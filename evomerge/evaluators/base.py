"""What an evaluator is: live model in, scores out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from evomerge.racing import Bar
from evomerge.recipe import Recipe
from evomerge.trial import Objective, Scores, Split

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Evaluator(Protocol):
    """Scores a live model on one split of every task.

    An evaluator is built and checked in the driver, then pickled to the workers: whatever
    :meth:`prepare` builds must stay out of the pickle.

    An evaluator may have ``scores_depend_on(split) -> Mapping | None``: plain data that changes
    whenever its scores of the same weights on that split could. Then no weights are scored twice
    (:mod:`evomerge.score_cache`); without it, or where it returns None, every time.
    It may also say (read with ``getattr``) its ``corpus_metrics``: the names of objectives that
    have no score per document, which racing and M2N2 need.

    Attributes:
        objectives: What it scores, searched and merely reported ones.
    """

    objectives: tuple[Objective, ...]

    def prepare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Builds, once per worker, everything that does not depend on the candidate."""
        ...

    def evaluate(
        self, model: PreTrainedModel, recipe: Recipe, split: Split, bar: Bar | None = None
    ) -> Scores:
        """Scores the weights that are in ``model`` now.

        On ``search`` and ``select`` only the objectives that guide the search; on ``test`` all.
        With a ``bar``, documents are asked in blocks for as long as the bar can be reached; where
        it cannot, the scores are estimates, and ``Scores.asked`` says from how many documents.
        """
        ...

    def documents(self, split: Split) -> Mapping[str, int]:
        """Number of documents per objective on a split."""
        ...

    def fingerprint(self) -> Mapping[str, Any]:
        """Plain data that changes whenever the scores could: tasks, documents, settings."""
        ...
