"""The documents of a split in growing blocks: asked one after the other, until a bar says stop.

Every candidate is asked the same documents in the same order, drawn once per task from the seed of
the splits. A block holds its share of every task's documents, so that all objectives grow alike.
Requests are encoded once per block and worker.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from evomerge.evaluators.metrics import rates
from evomerge.racing import Bar, Verdict
from evomerge.trial import Objective, Scores

if TYPE_CHECKING:
    from evomerge.evaluators.scoring import Requests

Array = npt.NDArray[np.float64]
Results = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]
"""(task, filter) to one mapping of metric to item per document."""


def order(task: str, n: int, seed: int) -> npt.NDArray[np.int64]:
    """(n,) the order in which a task's documents of a split are asked, the same everywhere."""
    key = int.from_bytes(hashlib.sha256(task.encode()).digest()[:8], "big")
    return np.random.default_rng([seed, key]).permutation(n).astype(np.int64)


class Blocks:
    """One split, cut for racing.

    Args:
        instances: Task to the requests of all its documents.
        shares: Growing shares of the documents, the last one 1.
        seed: Of the order.
        encode: Encodes requests.
        read: Makes results of answered requests.
        objectives: What is raced, one per task of a group.
        aggregations: Objective to how its documents become one number.
        join: Makes per-document values of the bar's objectives from those of ``objectives``.
    """

    def __init__(
        self,
        instances: Mapping[str, Sequence[Any]],
        shares: Sequence[float],
        seed: int,
        *,
        encode: Callable[[Sequence[Any]], Requests],
        read: Callable[[Mapping[str, Sequence[Any]]], Results],
        objectives: Sequence[Objective],
        aggregations: Mapping[str, Callable[..., Any]],
        join: Callable[[Mapping[str, Array]], Mapping[str, npt.NDArray[Any]]],
    ) -> None:
        self._read, self._objectives, self._aggregations = read, objectives, aggregations
        self._join = join
        self._sizes = {name: 1 + max(i.doc_id for i in rows) for name, rows in instances.items()}
        n_blocks = len(shares)
        parts: list[dict[str, list[Any]]] = [{} for _ in range(n_blocks)]
        for name, rows in instances.items():
            n = self._sizes[name]
            place = np.empty(n, dtype=np.int64)
            place[order(name, n, seed)] = np.arange(n)
            ends = [min(n, max(1, math.ceil(n * share))) for share in shares]
            for start, end, part in zip([0, *ends], ends, parts, strict=False):
                if start < end:  # few documents: some blocks of theirs are empty
                    part[name] = [i for i in rows if start <= place[i.doc_id] < end]
        self._parts = [part for part in parts if part]
        self._requests = [encode([i for rs in part.values() for i in rs]) for part in self._parts]
        self._weights = self._find_weights(instances)

    def _find_weights(self, instances: Mapping[str, Sequence[Any]]) -> dict[str, Array]:
        """Objective to its documents' weights, of mean 1: known before any answer is."""
        rolling = {
            name: rows
            for name, rows in instances.items()
            if all(i.request_type == "loglikelihood_rolling" for i in rows)
        }
        for rows in rolling.values():
            for instance in rows:
                instance.resps = [0.0]
        results = self._read(rolling) if rolling else {}
        found = {}
        for o in self._objectives:
            if o.task in rolling:
                items = [row[o.metric] for row in results[o.task, o.filter]]
                _, weights = rates(self._aggregations[o.name], items)
                if weights is not None:
                    found[o.name] = weights / weights.mean()
        return found

    def ask(self, answer: Callable[[Requests], None], bar: Bar) -> Scores | None:
        """Asks block after block.

        Args:
            answer: Puts the model's answers into requests.
            bar: Says when to stop.

        Returns:
            Estimated scores of a candidate that was stopped; None where all documents were asked.
        """
        seen = {o.name: np.full(self._sizes[o.task], np.nan) for o in self._objectives}
        asked = dict.fromkeys(self._sizes, 0)
        for part, requests in zip(self._parts, self._requests, strict=True):
            answer(requests)
            results = self._read(part)
            for name, rows in part.items():
                asked[name] += len({i.doc_id for i in rows})
            for o in self._objectives:
                if o.task in part:
                    self._note(o, results, part[o.task], seen[o.name])
            if asked == self._sizes:
                return None
            joined = self._join(seen)
            verdict = bar.verdict(joined, self._weights)
            if verdict.stop:
                return self._estimate(verdict, joined, sum(asked.values()))
        return None

    def _note(self, o: Objective, results: Results, instances: Sequence[Any], seen: Array) -> None:
        """Writes what one block says about one objective.

        Raises:
            FloatingPointError: For a score that is not finite.
        """
        documents = sorted({i.doc_id for i in instances})
        given = [
            (k, row[o.metric])
            for k, row in zip(documents, results[o.task, o.filter], strict=True)
            if o.metric in row
        ]
        if not given:
            return
        values, _ = rates(self._aggregations[o.name], [item for _, item in given])
        if np.isinf(values).any():
            raise FloatingPointError(f"objective {o.name!r}: its {o.metric} is not finite.")
        seen[[k for k, _ in given]] = o.sign * values

    def _estimate(
        self, verdict: Verdict, seen: Mapping[str, npt.NDArray[Any]], asked: int
    ) -> Scores:
        """Scores of a candidate that was stopped; documents in the form of complete scores."""
        examples: dict[str, npt.NDArray[np.float32] | None] = {}
        for name, values in seen.items():
            weights = self._weights.get(name, np.ones(len(values)))
            middle = verdict.values[name]
            examples[name] = (middle + weights * (values - middle)).astype(np.float32)
        names = list(seen)
        return Scores(
            values={n: verdict.values[n] for n in names},
            stderr={n: verdict.stderr[n] for n in names},
            per_example=examples,
            asked=asked,
        )
