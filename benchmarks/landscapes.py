"""Problems that cost nothing and resemble a merge search, and drivers built as a study does.

Everything lies in [0, 1]^d, scores are higher-is-better, near 1 where they are good. ``bowls``
also has per-document scores, whose mean is the objective, so that M2N2 has niches to live in.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from evomerge.geometry import Geometry
from evomerge.optimizers.base import Optimizer, Problem
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
        floor: (m,) reference point of the hypervolume, signed raw values.
        geometry: For M2N2, where the space is that of a merge.
    """

    name: str
    dim: int
    objectives: tuple[Objective, ...]
    score: Callable[[np.ndarray], Scores]
    floor: tuple[float, ...]
    geometry: Geometry | None = None

    def problem(self, seed: int) -> Problem:
        """What a driver is built with; it starts in the middle."""
        start = np.full(self.dim, 0.5)
        return Problem(self.dim, seed, self.objectives, start, geometry=self.geometry)


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
    names = [f"f{i + 1}" for i in range(len(values))]
    per_example = (
        dict.fromkeys(names) if documents is None else dict(zip(names, documents, strict=True))
    )
    return Scores({n: float(v) for n, v in zip(names, values, strict=True)}, {}, per_example)


def bowls(dim: int = 12, m: int = 2, n_documents: int = 60, condition: float = 30.0) -> Landscape:
    """A task is a bowl with interactions, around documents whose best points differ a little.

    Document j of task i scores 1 / (1 + q_ij(x)), with q_ij a rotated quadratic of the given
    condition number around its own optimum: a task's optima scatter by 0.1, the tasks' own centres
    lie 0.2 to 0.8 along each axis. So the tasks conflict, and everything is smooth.
    """
    rng = np.random.default_rng(20240 + dim)
    centres, roots = [], []
    for _ in range(m):
        centre = rng.uniform(0.2, 0.8, dim)
        centres.append(centre + 0.1 * rng.standard_normal((n_documents, dim)))
        rotation = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
        eigenvalues = np.logspace(0, np.log10(condition), dim)
        roots.append(rotation * np.sqrt(eigenvalues / eigenvalues.mean()))

    def score(x: np.ndarray) -> Scores:
        documents = [
            1 / (1 + 10 / dim * (((x - c) @ r) ** 2).sum(axis=1))
            for c, r in zip(centres, roots, strict=True)
        ]
        return _scores([s.mean() for s in documents], [s.astype(np.float32) for s in documents])

    return Landscape(f"bowls-{dim}", dim, _objectives(m), score, (0.0,) * m)


def rugged(dim: int = 6) -> Landscape:
    """Rastrigin's ripples on a bowl, two tasks: many local optima, a broad trend."""
    rng = np.random.default_rng(7)
    centres = rng.uniform(0.25, 0.75, (2, dim))

    def score(x: np.ndarray) -> Scores:
        z = 4 * (x - centres)  # ripples a quarter of the box apart
        loss = (z**2 + 0.5 * (1 - np.cos(2 * np.pi * z))).mean(axis=1)
        return _scores(1 / (1 + loss))

    return Landscape(f"rugged-{dim}", dim, _objectives(2), score, (0.0, 0.0))


def zdt1(dim: int = 12) -> Landscape:
    """ZDT1 (Zitzler, Deb & Thiele 2000), as 1 - f / (1, 11) so that scores lie in [0, 1].

    The front lies on the edge of the box: x_2 ... x_d = 0.
    """

    def score(x: np.ndarray) -> Scores:
        g = 1 + 9 * float(x[1:].mean())
        return _scores([1 - x[0], 1 - g * (1 - np.sqrt(x[0] / g)) / 11])

    return Landscape(f"zdt1-{dim}", dim, _objectives(2), score, (0.0, 0.0))


def dtlz2(dim: int = 12) -> Landscape:
    """DTLZ2 (Deb et al. 2002) with three objectives, as 1 - f / 3; the front is inside the box."""

    def score(x: np.ndarray) -> Scores:
        r = 1 + float(((x[2:] - 0.5) ** 2).sum())
        a, b = x[:2] * np.pi / 2
        f = r * np.array([np.cos(a) * np.cos(b), np.cos(a) * np.sin(b), np.sin(a)])
        return _scores(1 - f / 3)

    return Landscape(f"dtlz2-{dim}", dim, _objectives(3), score, (0.0,) * 3)
