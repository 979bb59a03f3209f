"""Several evaluators as one: tasks scored by lm-eval beside what is read off the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.evaluators.base import Evaluator
from evomerge.racing import Bar
from evomerge.recipe import Recipe
from evomerge.trial import Objective, Scores, Split

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Together:
    """Scores every objective with the evaluator that knows it.

    Args:
        main: Scores tasks; stock commands and samples are its.
        others: Score the rest.
        objectives: All objectives, in declared order.
    """

    def __init__(
        self, main: Evaluator, others: Sequence[Evaluator], objectives: Sequence[Objective]
    ) -> None:
        self.objectives = tuple(objectives)
        self._main, self._all = main, (main, *others)

    def prepare(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Prepares every evaluator."""
        for evaluator in self._all:
            evaluator.prepare(model, tokenizer)

    def evaluate(
        self, model: PreTrainedModel, recipe: Recipe, split: Split, bar: Bar | None = None
    ) -> Scores:
        """Scores of all, in declared order; a bar is told first what needs no documents."""
        others = [e.evaluate(model, recipe, split) for e in self._all[1:]]
        if bar is not None:
            bar = bar.knowing({k: v for scores in others for k, v in scores.values.items()})
        found = [self._main.evaluate(model, recipe, split, bar), *others]
        names = [o.name for o in self.objectives]

        def joined(field: str) -> dict[str, Any]:
            merged: dict[str, Any] = {}
            for scores in found:
                merged |= getattr(scores, field)
            return {n: merged[n] for n in names if n in merged}

        seconds = sum(s.seconds.get("score", 0.0) for s in found)
        return dataclasses.replace(
            found[0],
            values=joined("values"),
            stderr=joined("stderr"),
            per_example=joined("per_example"),
            seconds={"score": seconds},
        )

    @property
    def corpus_metrics(self) -> tuple[str, ...]:
        """Names of the main evaluator's objectives that have no score per document."""
        return tuple(getattr(self._main, "corpus_metrics", ()))

    def documents(self, split: Split) -> Mapping[str, int]:
        """Documents per objective that has documents."""
        return {k: n for e in self._all for k, n in e.documents(split).items()}

    def fingerprint(self) -> Mapping[str, Any]:
        """What all of them depend on."""
        return {k: v for e in self._all for k, v in e.fingerprint().items()}

    def scores_depend_on(self, split: Split) -> Mapping[str, Any] | None:
        """What the scores of all of them depend on; None where one of them does not say."""
        found: dict[str, Any] = {"objectives": [o.name for o in self.objectives]}
        for evaluator in self._all:
            say = getattr(evaluator, "scores_depend_on", None)
            said = say(split) if say is not None else None
            if said is None:
                return None
            found[type(evaluator).__name__] = said
        return found

    def write_samples(self, folder: str | Path) -> dict[Split, Path]:
        """As the main evaluator does; nothing where it cannot."""
        write = getattr(self._main, "write_samples", None)
        return dict(write(folder)) if write is not None else {}

    def stock_command(
        self, model_dir: str | Path, split: Split, samples: str | Path | None = None
    ) -> list[str]:
        """As the main evaluator does; nothing where it cannot."""
        command = getattr(self._main, "stock_command", None)
        return list(command(model_dir, split, samples)) if command is not None else []
