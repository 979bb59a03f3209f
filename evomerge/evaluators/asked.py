"""What is asked on one split, encoded once per worker, and what is made of the answers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from lm_eval.api.metrics import mean

from evomerge.evaluators.blocks import Blocks
from evomerge.evaluators.groups import Group, aggregate, expand, join
from evomerge.evaluators.metrics import scores_from
from evomerge.evaluators.requests import process
from evomerge.evaluators.scoring import LiveModel
from evomerge.evaluators.tasks import lean
from evomerge.racing import Bar
from evomerge.trial import Objective, Scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Asked:
    """The documents of one split.

    Args:
        live: The resident model.
        tasks: Task to the lm-eval task.
        instances: Task to the requests of its documents.
        objectives: What is scored on this split.
        groups: The groups among their tasks.
        seed: Of the order in which documents are raced.

    Attributes:
        instances: As given; their ``resps`` hold the answers of the last candidate.
        requests: All of them, encoded.
    """

    def __init__(
        self,
        live: LiveModel,
        *,
        tasks: Mapping[str, Any],
        instances: Mapping[str, list[Any]],
        objectives: Sequence[Objective],
        groups: Mapping[str, Group],
        seed: int,
    ) -> None:
        self.instances = instances
        self._live, self._tasks, self._groups, self._seed = live, tasks, groups, seed
        self._objectives = tuple(objectives)
        self._parts = expand(objectives, groups)
        self._n_documents = {
            name: 1 + max(i.doc_id for i in group) for name, group in instances.items()
        }
        self._blocks: dict[tuple[float, ...], Blocks] = {}
        with lean():
            self.requests = live.encode([i for group in instances.values() for i in group])

    def scores(self, model: PreTrainedModel, bar: Bar | None) -> Scores:
        """Asks all documents, or block after block until the bar cannot be reached.

        Args:
            model: The model with the candidate's weights, in evaluation mode.
            bar: What it has to beat; None: all documents are asked.

        Raises:
            FloatingPointError: When the model's outputs or a score are not finite.
        """
        if bar is None:
            self._live.answer(model, self.requests)
        else:
            answer = functools.partial(self._live.answer, model)
            estimated = self._cut(bar.shares).ask(answer, bar)
            if estimated is not None:
                return estimated
        aggregations = {name: self._tasks[name].aggregation() for name in self.instances}
        scores = scores_from(self._parts, self._read(self.instances), aggregations)
        if self._groups:
            scores = aggregate(self._objectives, self._groups, scores, self._n_documents)
        return scores

    def _read(
        self, instances: Mapping[str, Sequence[Any]]
    ) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
        """What answered requests give: (task, filter) to one mapping per document."""
        results: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for name, group in instances.items():
            filters = {o.filter for o in self._parts if o.task == name}
            metrics = {o.metric for o in self._parts if o.task == name}
            measured = functools.partial(self._live.measure, metrics)
            rows = process(self._tasks[name], group, filters, measured)
            results |= {(name, key): value for key, value in rows.items()}
        return results

    def _cut(self, shares: tuple[float, ...]) -> Blocks:
        """The split in blocks, cut when it is first raced on."""
        if shares not in self._blocks:
            with lean():
                self._blocks[shares] = Blocks(
                    self.instances,
                    shares,
                    self._seed,
                    encode=self._live.encode,
                    read=self._read,
                    objectives=self._parts,
                    aggregations={o.name: aggregation(self._tasks, o) for o in self._parts},
                    join=functools.partial(
                        join, self._objectives, self._groups, n_documents=self._n_documents
                    ),
                )
        return self._blocks[shares]


def aggregation(tasks: Mapping[str, Any], objective: Objective) -> Callable[..., Any]:
    """How a task makes one number of an objective's documents; lm-eval's default is the mean."""
    found = tasks[objective.task].aggregation().get(objective.metric, mean)
    return cast("Callable[..., Any]", found)
