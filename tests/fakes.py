"""Small real parts for tests of the loop: recipes, scores, an executor that computes at once."""

from __future__ import annotations

import dataclasses
import random
from collections import deque
from collections.abc import Callable

import numpy as np

from evomerge.executors.base import Job
from evomerge.racing import Bar
from evomerge.recipe import LayerGroup, ModelRef, Recipe
from evomerge.trial import Objective, Scores, Trial, TrialState

OBJECTIVES = (
    Objective("a", "task_a", "acc"),
    Objective("b", "task_b", "bits_per_byte", direction="minimize"),
    Objective("extra", "task_c", "acc", search=False),
)
MODELS = (ModelRef("one", "/models/one", "1" * 64), ModelRef("two", "/models/two", "2" * 64))
BASE = ModelRef("base", "/models/base", "0" * 64)
GROUPS = (LayerGroup("layers.0", ("w0",)), LayerGroup("layers.1", ("w1", "w2")))
AXES = [(f"weight[{g.name}][{m.name}]", 0.0, 1.0) for g in GROUPS for m in MODELS]
DIM = len(AXES)


class BoxSpace:
    """[0, 1]^4 as the weights of two groups and two experts."""

    dim = DIM

    def snap(self, x):
        return np.array(x, dtype=np.float64)

    def decode(self, x) -> Recipe:
        return recipe(np.reshape(x, (2, 2)))


def recipe(weights) -> Recipe:
    weights = np.broadcast_to(np.asarray(weights, dtype=np.float64), (2, 2))
    return Recipe("task_arithmetic", MODELS, BASE, GROUPS, {"weight": weights})


def scores_of(r: Recipe, split: str = "search", n: int = 16) -> Scores:
    """Two objectives with known optima at weights 0.7 and 0.3, and per-document values."""
    w = r.coefficients["weight"]
    a = 1 - float(((w - 0.7) ** 2).mean())
    b = -0.5 - float(((w - 0.3) ** 2).mean())
    noise = np.random.default_rng(7).normal(0, 0.1, n).astype(np.float32)
    noise -= noise.mean()
    values = {"a": a, "b": b} | ({"extra": a / 2} if split == "test" else {})
    return Scores(
        values=values,
        stderr=dict.fromkeys(values, 0.1 / n**0.5),
        per_example={k: (v + noise).astype(np.float32) for k, v in values.items()},
        seconds={"merge": 0.001, "score": 0.002},
    )


def raced(scores: Scores, bar: Bar) -> Scores:
    """What an evaluator makes of documents that are asked in blocks."""
    for share in bar.shares[:-1]:
        seen = {}
        for name, row in scores.per_example.items():
            seen[name] = np.full(len(row), np.nan, dtype=np.float32)
            n = int(np.ceil(len(row) * share))
            seen[name][:n] = row[:n]
        verdict = bar.verdict(seen)
        if verdict.stop:
            asked = sum(int(np.isfinite(row).sum()) for row in seen.values())
            return Scores(verdict.values, verdict.stderr, seen, scores.seconds, asked)
    return scores


class FakeExecutor:
    """Runs jobs at once; may finish them out of order, fail some, or be killed after a few.

    Args:
        capacity: Jobs in flight.
        seed: Order of completion; None for first in, first out.
        fails: Which trials fail.
        dies_after: Raises SystemExit (as kill -9 would end the driver) after this many results.
    """

    def __init__(
        self,
        capacity: int = 1,
        *,
        seed: int | None = None,
        fails: Callable[[Trial], bool] = lambda t: False,
        dies_after: int | None = None,
    ) -> None:
        self.capacity = capacity
        self.evaluated: list[tuple[int, str]] = []
        self.bars: dict[tuple[int, str], Bar | None] = {}
        self._queue: deque[Job] = deque()
        self._random = None if seed is None else random.Random(seed)
        self._fails, self._dies_after = fails, dies_after

    def warm_up(self) -> None:
        pass

    def submit(self, job: Job) -> None:
        assert len(self._queue) < self.capacity or job.trial.kind == "reference"
        self.bars[job.trial.number, job.trial.split] = job.bar
        self._queue.append(job)

    def collect(self, timeout: float | None = None) -> list[Trial]:
        if not self._queue:
            return []
        if self._dies_after is not None and len(self.evaluated) >= self._dies_after:
            raise SystemExit
        if self._random:
            self._queue.rotate(self._random.randrange(len(self._queue)))
        job = self._queue.popleft()
        trial = job.trial
        self.evaluated.append((trial.number, trial.split))
        if self._fails(trial):
            return [dataclasses.replace(trial, state=TrialState.FAILED, error="Boom: on purpose")]
        scores = scores_of(trial.recipe, trial.split)
        if job.bar is not None:
            scores = raced(scores, job.bar)
        state = TrialState.COMPLETE if scores.asked is None else TrialState.PRUNED
        return [dataclasses.replace(trial, state=state, scores=scores)]

    def close(self) -> None:
        self._queue.clear()
