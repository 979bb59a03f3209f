"""An executor on a virtual clock, with workers that straggle, die, restart and answer twice."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections import Counter, deque
from collections.abc import Callable

import numpy as np

from evomerge.executors.base import Job
from evomerge.trial import Scores, Split, Trial, TrialState

Evaluate = Callable[[Trial], Scores]
"""Scores of a trial; raises where its evaluation fails."""


@dataclasses.dataclass(frozen=True)
class Faults:
    """What goes wrong, all of it drawn from (seed, trial, attempt).

    Attributes:
        seed: Of everything that follows.
        straggles: Share of evaluations that take ``slowdown`` times as long.
        slowdown: By how much a straggler is late.
        loses: Share of evaluations that lose their worker on the way, at most ``max_attempts - 1``
            times per trial.
        repeats: Share of answers that come twice, the second time late: from a worker that was
            given up, or through a network that repeats itself.
        poisons: Share of recipes that kill every worker.
        max_attempts: How many workers a trial may lose; as in the Ray executor.
        restart: Seconds until a lost worker is replaced.
        leaves: Share of lost workers that never come back, the last one excepted.
    """

    seed: int = 0
    straggles: float = 0.0
    slowdown: float = 5.0
    loses: float = 0.0
    repeats: float = 0.0
    poisons: float = 0.0
    max_attempts: int = 3
    restart: float = 1.0
    leaves: float = 0.0

    def draw(self, trial: Trial, what: int) -> np.ndarray:
        """(4,) uniform numbers for one decision about a trial."""
        keys = (trial.number, len(trial.split), trial.attempt, what)
        return np.random.default_rng((self.seed, *keys)).random(4)

    def poisoned(self, trial: Trial) -> bool:
        """Whether its recipe kills every worker, on every split and at every attempt."""
        return self.poisons > 0 and _hash(trial.recipe.id, self.seed) < self.poisons


class VirtualExecutor:
    """Runs jobs at once, and says that it took hours.

    Args:
        evaluate: Scores a trial.
        workers: How many at the start.
        seconds: Virtual duration of a trial's evaluation.
        faults: What goes wrong.
        driver_seconds: Reads a clock of the real driver: what it spends between two calls of
            :meth:`collect` then passes on the virtual clock too.

    Attributes:
        now: Virtual seconds since the start.
        offered: Worker-seconds that there were, up to the last job that was handed out.
        idle: Those of them that a worker had nothing to do.
        driver: Seconds that the driver took.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        workers: int,
        seconds: Callable[[Trial], float],
        faults: Faults | None = None,
        driver_seconds: Callable[[], float] | None = None,
    ) -> None:
        self._evaluate, self._seconds = evaluate, seconds
        self._faults = faults or Faults()
        self._driver_seconds = driver_seconds
        self._since: float | None = None
        self.now = self.offered = self.idle = self.driver = 0.0
        self._offered = self._waited = 0.0  # the same up to now
        self.capacity = self._idle = workers
        self._queue: deque[Job] = deque()
        self._lost: Counter[tuple[int, Split]] = Counter()
        self._events: list[tuple[float, int, Callable[[], list[Trial]]]] = []
        self._order = itertools.count()
        self._open = 0  # jobs without an answer

    @property
    def offered_until_now(self) -> tuple[float, float]:
        """``offered`` and ``idle``, whether or not a job is handed out."""
        return self._offered, self._waited

    def warm_up(self) -> None:
        self._since = self._driver_seconds() if self._driver_seconds else None

    def submit(self, job: Job) -> None:
        self._open += 1
        self._queue.append(job)

    def collect(self, timeout: float | None = None) -> list[Trial]:
        """Passes time until something is finished; [] when nothing is in flight."""
        if self._driver_seconds and self._since is not None:
            spent = self._driver_seconds() - self._since
            self.driver += spent
            self._pass(self.now + spent)
        finished: list[Trial] = []
        self._assign()
        while self._open and (not finished or self._events[0][0] <= self.now):
            at, _, happen = heapq.heappop(self._events)
            self._pass(max(self.now, at))
            free = self._idle
            finished += happen()
            self._waited += max(0, self._idle - free) * (self.now - at)  # the driver was busy
            self._assign()
            if not self._events:
                break
        if self._driver_seconds:
            self._since = self._driver_seconds()
        return finished

    def close(self) -> None:
        self._queue.clear()
        self._events.clear()

    def _pass(self, now: float) -> None:
        self._offered += self.capacity * (now - self.now)
        self._waited += self._idle * (now - self.now)
        self.now = now

    def _at(self, seconds: float, happen: Callable[[], list[Trial]]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), happen))

    def _assign(self) -> None:
        while self._queue and self._idle > 0:
            self._idle -= 1
            self._run(self._queue.popleft().trial)
            self.offered, self.idle = self._offered, self._waited

    def _run(self, trial: Trial) -> None:
        f, key = self._faults, (trial.number, trial.split)
        u = f.draw(trial, self._lost[key])
        seconds = self._seconds(trial) * (f.slowdown if u[0] < f.straggles else 1.0)
        by_chance = u[1] < f.loses and self._lost[key] < f.max_attempts - 1
        if by_chance or f.poisoned(trial):
            self._at(u[2] * seconds, lambda: self._lose(trial, u[3]))
            return
        self._at(seconds, lambda: self._answer(trial, u[3], seconds))

    def _answer(self, trial: Trial, u: float, seconds: float) -> list[Trial]:
        self._idle += 1
        self._open -= 1
        try:
            state: dict = {"state": TrialState.COMPLETE, "scores": self._evaluate(trial)}
        except ArithmeticError as e:
            state = {"state": TrialState.FAILED, "error": f"Traceback: {e}"}
        done = dataclasses.replace(trial, **state)
        if u < self._faults.repeats / 2:
            return [done, done]
        if u < self._faults.repeats:
            self._at(u * seconds, lambda: [done])
        return [done]

    def _lose(self, trial: Trial, u: float) -> list[Trial]:
        """A worker is dead: another one takes over, or the trial is given up."""
        key = (trial.number, trial.split)
        self._lost[key] += 1
        if u < self._faults.leaves and self.capacity > 1:
            self.capacity -= 1
        else:
            self._at(self._faults.restart, self._return)
        if self._lost[key] >= self._faults.max_attempts:
            self._open -= 1
            error = f"given up after {self._lost[key]} attempts"
            return [dataclasses.replace(trial, state=TrialState.FAILED, error=error)]
        self._queue.appendleft(Job(dataclasses.replace(trial, attempt=trial.attempt + 1)))
        return []

    def _return(self) -> list[Trial]:
        self._idle += 1
        return []


def _hash(text: str, seed: int) -> float:
    """A number in [0, 1) that a recipe has for good."""
    return float(np.random.default_rng((seed, int(text[:12], 16))).random())
