"""Problems that cost nothing and resemble a merge search, and drivers built as a study does.

Everything lies in [0, 1]^d, scores are higher-is-better, near 1 where they are good. ``bowls``
also has experts and per-document scores, whose mean is the objective: M2N2's parents and niches.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from evomerge import pareto
from evomerge.geometry import Geometry
from evomerge.optimizers.base import Optimizer, Problem, Yardstick
from evomerge.recipe import LayerGroup, ModelRef, Recipe
from evomerge.resources import resource_folder
from evomerge.trial import Objective, Scores, Trial, TrialState

RECIPE = Recipe(
    method="linear",
    models=(ModelRef("a", "a"), ModelRef("b", "b")),
    base=None,
    groups=(LayerGroup("all", ("w",)),),
    coefficients={"weight": np.array([[0.5, 0.5]])},
)
"""Stands in for what would be merged: drivers look at x and scores only."""


@dataclasses.dataclass(frozen=True)
class Landscape:
    """A function to maximise.

    Attributes:
        name: What it is called in tables.
        dim: Dimension d.
        objectives: The m objectives.
        score: (d,) point of [0, 1]^d to its scores.
        floor: Reference point of the hypervolume, the same in every normalised objective.
        references: Told before the search starts, numbered from 0.
        start: The space's default; the middle unless given.
        geometry: For M2N2, where the space is that of a merge.
        limit: The best possible figures, where they are known: ``mean``, ``volume``.
    """

    name: str
    dim: int
    objectives: tuple[Objective, ...]
    score: Callable[[np.ndarray], Scores]
    floor: float = 0.0
    references: tuple[Trial, ...] = ()
    start: np.ndarray | None = None
    geometry: Geometry | None = None
    limit: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def problem(self, seed: int) -> Problem:
        """What a driver is built with."""
        start = np.full(self.dim, 0.5) if self.start is None else self.start
        return Problem(self.dim, seed, self.objectives, start, geometry=self.geometry)


class Progress:
    """The best that a search has so far.

    Args:
        landscape: Its references are the units of the normalised scores.
        with_references: Whether they count as found.

    Attributes:
        mean: Best weighted mean of the normalised scores.
        volume: Hypervolume of the normalised scores.
    """

    def __init__(self, landscape: Landscape, *, with_references: bool = True) -> None:
        self._yardstick = Yardstick(landscape.problem(0))
        for trial in landscape.references:
            self._yardstick.tell(trial)
        self._floor = np.full(len(landscape.objectives), landscape.floor)
        self._front = np.zeros((0, len(landscape.objectives)))
        self.mean, self.volume = -np.inf, 0.0
        for trial in landscape.references if with_references else ():
            self.take(trial)

    def take(self, trial: Trial) -> None:
        """Takes one finished trial."""
        if not self._yardstick.is_scored(trial):
            return
        f = self._yardstick.normalised(trial)
        self.mean = max(self.mean, -self._yardstick.key(trial)[1])
        if (self._floor < f).all() and not (self._front >= f).all(axis=1).any():
            self._front = np.vstack([self._front[~(self._front <= f).all(axis=1)], f])
            self.volume = pareto.hypervolume(self._front, self._floor)


def driver_names() -> list[str]:
    """Every ``conf/optimizer/*.yaml``, by name."""
    return sorted(p.stem for p in (resource_folder("conf") / "optimizer").glob("*.yaml"))


def settings_of(driver: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings of one driver's configuration, ``_target_`` included."""
    path = Path(str(resource_folder("conf"))) / "optimizer" / f"{driver}.yaml"
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found | dict(overrides or {})


def build(problem: Problem, settings: Mapping[str, Any]) -> Optimizer:
    """The driver that ``_target_`` names."""
    module, _, name = settings["_target_"].rpartition(".")
    rest = {k: v for k, v in settings.items() if k != "_target_"}
    driver: Optimizer = getattr(importlib.import_module(module), name)(problem, **rest)
    return driver


def running(number: int, x: np.ndarray) -> Trial:
    """A search trial that was asked for."""
    return Trial(number, "search", np.asarray(x, dtype=np.float64), RECIPE)


def complete(trial: Trial, scores: Scores) -> Trial:
    """The same trial, scored."""
    return dataclasses.replace(trial, state=TrialState.COMPLETE, scores=scores)


def _objectives(m: int) -> tuple[Objective, ...]:
    return tuple(Objective(f"f{i + 1}", f"t{i + 1}", "score") for i in range(m))


def _scores(values: Sequence[float], documents: Sequence[np.ndarray] | None = None) -> Scores:
    """Scores f1 ... fm; without documents of its own an objective is one document."""
    rows = np.asarray(values, dtype=np.float32)[:, None] if documents is None else documents
    names = [f"f{i + 1}" for i in range(len(values))]
    return Scores(
        {n: float(v) for n, v in zip(names, values, strict=True)},
        {},
        {n: np.asarray(r, dtype=np.float32) for n, r in zip(names, rows, strict=True)},
    )


def bowls(dim: int = 12, m: int = 2, n_documents: int = 60, condition: float = 30.0) -> Landscape:
    """Three experts, blockwise coefficients; each task a bowl with interactions.

    The axes are (block, expert) coefficients, 0 to 1.5 as in ``search_spaces/blockwise.yaml``.
    Document j of task i scores 1 / (1 + q_ij(x)), with q_ij a rotated quadratic of the given
    condition number around that document's own optimum. A task's optima scatter by 0.1 around a
    centre with much of its own expert (0.4 to 0.9) and little of the others (0 to 0.4), so the
    tasks conflict and a merge pays.
    """
    n_experts, high = 3, 1.5
    rng = np.random.default_rng(20240 + dim)
    expert = np.arange(dim) % n_experts
    centres, roots = [], []
    for i in range(m):
        own = expert == i
        centre = np.where(own, rng.uniform(0.4, 0.9, dim), rng.uniform(0.0, 0.4, dim))
        centres.append(centre + 0.1 * rng.standard_normal((n_documents, dim)))
        rotation = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
        eigenvalues = np.logspace(0, np.log10(condition), dim)
        roots.append(rotation * np.sqrt(eigenvalues / eigenvalues.mean()))

    def score(x: np.ndarray) -> Scores:
        documents = [
            1 / (1 + 10 / dim * (((x - c) @ r) ** 2).sum(axis=1))
            for c, r in zip(centres, roots, strict=True)
        ]
        return _scores([s.mean() for s in documents], documents)

    points = {"base": np.zeros(dim)}
    points |= {f"expert {k}": np.where(expert == k, 1 / high, 0.0) for k in range(n_experts)}
    points |= {"uniform average": np.full(dim, 1 / 3 / high), "default": np.full(dim, 0.4 / high)}
    references = tuple(
        dataclasses.replace(complete(running(i, x), score(x)), kind="reference", label=label)
        for i, (label, x) in enumerate(points.items())
    )
    n_blocks = dim // n_experts
    # Task vectors of equal length, nearly at right angles, as those of real experts.
    gram = np.full((n_experts, n_experts), 0.1) + 0.9 * np.eye(n_experts)
    geometry = Geometry(
        grams=np.tile(gram, (n_blocks, 1, 1)),
        sizes=np.full(n_blocks, 1000.0),
        matrix=np.eye(dim),
        low=np.zeros(dim),
        high=np.full(dim, high),
    )
    return Landscape(
        f"bowls-{dim}", dim, _objectives(m), score, 0.0, references, points["default"], geometry
    )


def rugged(dim: int = 6) -> Landscape:
    """Rastrigin's ripples on a bowl, two tasks: many local optima, a broad trend."""
    rng = np.random.default_rng(7)
    centres = rng.uniform(0.25, 0.75, (2, dim))

    def score(x: np.ndarray) -> Scores:
        z = 4 * (x - centres)  # ripples a quarter of the box apart
        loss = (z**2 + 0.5 * (1 - np.cos(2 * np.pi * z))).mean(axis=1)
        return _scores(1 / (1 + loss))

    return Landscape(f"rugged-{dim}", dim, _objectives(2), score)


def zdt1(dim: int = 12) -> Landscape:
    """ZDT1 (Zitzler, Deb & Thiele 2000), as 1 - f / (1, 5).

    The front lies on the edge of the box: x_2 ... x_d = 0.
    """

    def score(x: np.ndarray) -> Scores:
        g = 1 + 9 * float(x[1:].mean())
        return _scores([1 - x[0], 1 - g * (1 - np.sqrt(x[0] / g)) / 5])

    limit = {"mean": 0.905, "volume": 14 / 15}
    return Landscape(f"zdt1-{dim}", dim, _objectives(2), score, limit=limit)


def dtlz2(dim: int = 12) -> Landscape:
    """DTLZ2 (Deb et al. 2002) with three objectives, as 1 - f / 1.5.

    Its front is moved from x_3 ... x_d = 0.5 to 0.3, away from where every driver starts.
    """

    def score(x: np.ndarray) -> Scores:
        r = 1 + float(((x[2:] - 0.3) ** 2).sum())
        a, b = x[:2] * np.pi / 2
        f = r * np.array([np.cos(a) * np.cos(b), np.cos(a) * np.sin(b), np.sin(a)])
        return _scores(1 - f / 1.5)

    limit = {"mean": 7 / 9, "volume": 1 - np.pi / 6 / 1.5**3}
    return Landscape(f"dtlz2-{dim}", dim, _objectives(3), score, limit=limit)
