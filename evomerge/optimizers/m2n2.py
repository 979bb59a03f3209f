"""M2N2, model merging of natural niches, as a steady-state, asynchronous fold.

Abrantes, Lange & Tang (2025), "Competition and Attraction Improve Model Fusion"
(arXiv:2508.16204). Its archive and its crossover are in :mod:`evomerge.optimizers.niches`; here
they become an optimizer.

* The archive is a fold: every told COMPLETE and feasible trial with an x competes for a place,
  the references (the experts: the paper's seeds) among them. PRUNED trials were not asked all
  documents and never enter; nor do FAILED ones.
* Trial number k is a child drawn with (seed, k) from the archive of the moment: results may come
  in any order, and no worker waits. ``n_design`` points, or as many as it takes until there are
  two parents, come first: ``start``, then scrambled Sobol points.
* Where the space is linear in the models (:attr:`Problem.geometry`) a child is crossed as the
  weights would be: the angle is that of the whole models, by their Gram matrices, the cut falls on
  a parameter drawn uniformly and is realised at the boundary of its layer group, and the
  coefficients of ``a A + b B`` are exact, generation after generation. Slerp lengthens
  coefficients (1.03 to 1.18 on digit classifiers), so the space needs room. A child outside it is
  drawn again, never clipped.
* A space that shares coefficients among layer groups (a depth profile, one weight per expert) has
  no merge that is cut between two of them. There the axes' values are crossed, by the same angle,
  and cut between two axes.
* Where the space is not linear, or no child inside it is found, x itself is crossed, by lerp and
  cut between two axes: the box holds every such child.

What competition is about, also for log-likelihoods: :mod:`evomerge.optimizers.documents`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from evomerge.errors import ConfigError
from evomerge.optimizers.base import (
    Problem,
    Yardstick,
    check_integer,
    check_number,
    counts,
    n_asked,
    n_useful,
    rng_for,
)
from evomerge.optimizers.design import SobolSequence
from evomerge.optimizers.documents import Documents
from evomerge.optimizers.niches import Archive, cross, draw_cut
from evomerge.recipe import Vector
from evomerge.trial import Trial

Array = npt.NDArray[np.float64]

CROSSOVERS = ("slerp", "lerp")
_REDRAWS = 50
"""Tries for a child inside the space that was not proposed before; then lerp children in x."""
_DIGITS = 9
"""Two points that agree to so many decimals are the same."""


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """One member of the archive.

    Attributes:
        trial: The told trial.
        x: (d,) its point.
    """

    trial: Trial
    x: Vector


class M2n2:
    """M2N2 on the documents of all optimised objectives.

    While a reference point is pending, :meth:`ask` returns points of the design only.

    Args:
        problem: What is optimised, with per-document scores; its scalarisation plays no part.
        pop_size: Size of the archive, >= 2.
        alpha: Strength of the competition, >= 0; 0 for none.
        attraction: Whether the second parent is drawn for what the first one cannot do.
        split: Whether parents are cut; else a child is one blend throughout.
        crossover: ``"slerp"`` or ``"lerp"``.
        mutation: Standard deviation of a step that is added to every axis, in units of the box;
            0 for none, as the paper has it for trained models (a search of a few hundred trials
            is better off with some: figures in ``conf/optimizer/m2n2.yaml``).
        n_design: How many search trials are design points, >= 0.

    Attributes:
        pareto: True for two objectives or more: its niches span a front (the largest on both real
            merges of ``docs/drivers.md``), so the finalists should too.
        needs_geometry: True: whoever builds the problem should add the models' inner products.
        needs_documents: True: an objective without per-document scores is refused.
        note: What the user should know about how parents are crossed, or "".

    Raises:
        ConfigError: A setting that does not make sense.
    """

    needs_geometry = True
    needs_documents = True

    def __init__(
        self,
        problem: Problem,
        *,
        pop_size: int = 20,
        alpha: float = 1.0,
        attraction: bool = True,
        split: bool = True,
        crossover: str = "slerp",
        mutation: float = 0.05,
        n_design: int = 10,
    ) -> None:
        check_integer("pop_size", pop_size, 2)
        check_integer("n_design", n_design, 0)
        for name, value in (("alpha", alpha), ("mutation", mutation)):
            if value != 0:
                check_number(name, value, 0)
        for name, switch in (("attraction", attraction), ("split", split)):
            if not isinstance(switch, bool):
                raise ConfigError(f"{name}: expected true or false, got {switch!r}.")
        if crossover not in CROSSOVERS:
            raise ConfigError(f"crossover: expected one of {CROSSOVERS}, got {crossover!r}.")
        self._problem, self._geometry = problem, problem.geometry
        self._dim, self._seed = problem.dim, problem.seed
        self.pareto = len(problem.optimised) > 1
        self._attraction, self._split, self._slerp = attraction, split, crossover == "slerp"
        self._mutation, self._n_design = float(mutation), int(n_design)
        self._pop_size, self._alpha = int(pop_size), float(alpha)
        self._sobol = SobolSequence(problem.dim, problem.seed, max(self._n_design, 2))
        self._yardstick = Yardstick(problem)
        self._documents = Documents(problem)
        self._references: list[Trial] = []
        self._archive = self._empty()
        self._seen: set[bytes] = set()
        self._n_searched = 0
        self.note = ""
        if self._geometry is None and self._slerp:
            self.note = (
                "m2n2: no inner products of the models (the search space is not linear in them): "
                "parents are crossed by lerp between the axes, not by slerp between the models."
            )

    @property
    def members(self) -> tuple[Member, ...]:
        """The archive as it stands."""
        return tuple(self._archive.members)

    def ask(self, n: int, first: int, pending: Sequence[Trial] = ()) -> list[Vector]:
        """Proposes ``n`` points of shape (d,), of the design only while a reference is pending."""
        flying = [t for t in pending if counts(t)]
        index = self._n_searched + n_asked(pending)
        taken = {_key(t.x) for t in flying if t.x is not None}
        points: list[Vector] = []
        for i in range(n_useful(n, self._n_design - index, pending)):
            x = self._propose(index + i, rng_for(self._seed, first + i), taken)
            taken.add(_key(x))
            points.append(x)
        return points

    def tell(self, trials: Sequence[Trial]) -> None:
        """Takes finished trials in told order; each COMPLETE, feasible one contends for a place.

        Raises:
            ConfigError: An objective is a corpus metric, without per-document scores.
            StudyError: A trial has other documents than the trials before.
        """
        for trial in trials:
            if not counts(trial):
                continue
            self._n_searched += trial.kind == "search"
            if trial.x is not None:
                self._seen.add(_key(trial.x))
            if not self._yardstick.is_scored(trial):
                continue
            row = self._documents.row(trial)
            if trial.kind == "reference":
                self._yardstick.tell(trial)
                self._documents.refer(trial, row, self._yardstick)
                self._references.append(trial)
                self._judge_again()
            else:
                self._enter(trial, row)

    def _empty(self) -> Archive[Member]:
        return Archive(self._pop_size, self._alpha, self._documents.resources)

    def _judge_again(self) -> None:
        """A new reference changes units and bounds: all members have to stand up to them."""
        searched = [m.trial for m in self._archive.members if m.trial.kind == "search"]
        self._archive = self._empty()
        for trial in (*self._references, *searched):
            self._enter(trial, self._documents.row(trial))

    def _enter(self, trial: Trial, row: Array) -> None:
        if trial.x is None or self._yardstick.violation(trial) > 0:
            return
        x = np.array(trial.x, dtype=np.float64)
        if any(np.array_equal(m.x, x) for m in self._archive.members):
            return  # it would share every document with itself
        self._archive.add(Member(trial, x), row)

    def _propose(self, index: int, rng: np.random.Generator, taken: set[bytes]) -> Vector:
        """One point that differs from all told and ``taken`` ones.

        Args:
            index: How many search trials came before it.
            rng: Its own generator.
            taken: Keys of the points that are pending.
        """
        if index < self._n_design or len(self._archive) < 2:
            x = self._problem.start.copy() if index == 0 else self._sobol[index - 1]
            if self._is_new(x, taken):
                return x
        if len(self._archive) >= 2:
            for attempt in range(2 * _REDRAWS):
                x_or_none = self._child(rng, plain=attempt >= _REDRAWS)
                if x_or_none is not None and self._is_new(x_or_none, taken):
                    return x_or_none
        return rng.random(self._dim)

    def _is_new(self, x: Vector, taken: set[bytes]) -> bool:
        key = _key(x)
        return key not in taken and key not in self._seen

    def _child(self, rng: np.random.Generator, *, plain: bool) -> Vector | None:
        """A child of two members, or None where it lies outside the space.

        Args:
            rng: Its own generator.
            plain: Cross x by lerp, which always succeeds.
        """
        i, j = self._archive.parents(rng, attraction=self._attraction)
        a, b = self._archive.members[i], self._archive.members[j]
        geometry = None if plain else self._geometry
        separable = geometry is not None and geometry.is_separable
        sizes = geometry.sizes if geometry is not None and separable else self._dim
        cut = draw_cut(sizes, rng) if self._split else 0
        t = float(rng.random())
        if geometry is None:
            return self._mutated(cross(a.x, b.x, cut, t), rng)
        left, right = geometry.coefficients(a.x), geometry.coefficients(b.x)
        angle = geometry.angle(left, right) if self._slerp else 0.0
        if separable:
            x = geometry.point(cross(left, right, cut, t, angle))
        else:
            x = geometry.place(cross(geometry.values(a.x), geometry.values(b.x), cut, t, angle))
        return x if x is None else self._mutated(x, rng)

    def _mutated(self, x: Vector, rng: np.random.Generator) -> Vector:
        """``x`` plus a normal step on every axis; a step that leaves the box is drawn again."""
        x = np.clip(x, 0.0, 1.0)  # rounding
        if self._mutation == 0:
            return x
        out = np.ones(self._dim, dtype=bool)
        moved = x.copy()
        for _ in range(_REDRAWS):
            moved[out] = x[out] + self._mutation * rng.standard_normal(int(out.sum()))
            out = (moved < 0) | (moved > 1)
            if not out.any():
                break
        moved[out] = x[out]
        return moved


def _key(x: Vector) -> bytes:
    """What two points share that are the same to rounding."""
    return (np.round(np.asarray(x, dtype=np.float64), _DIGITS) + 0.0).tobytes()
