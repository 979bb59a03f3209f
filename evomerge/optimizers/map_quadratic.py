"""MAP: a surrogate of every score, and the Pareto front that it predicts, measured and refitted.

Li et al. (2024), "MAP: Low-compute model merging with amortized Pareto fronts via quadratic
approximation", arXiv:2406.07529. The surrogates, and how one is chosen per score by leave-one-out
error, are in :mod:`evomerge.optimizers.surrogate`.

* The first ``n_design`` trials are a design: the space's start, each expert alone, scrambled Sobol
  points. While its last trials are still running, further Sobol points keep the workers busy.
* Whenever ``n_refine`` more trials were told, everything observed so far is fitted anew, the
  reference points in the space among it, and NSGA-III (Deb & Jain 2014, IEEE TEC 18(4); pymoo's)
  searches the surrogates, within the box that was sampled, for the predicted front.
* Of that front, each ask takes the point with the largest expected gain in hypervolume over what
  was observed and what is pending (Emmerich et al. 2006, IEEE TEC 10(4)), times the probability
  that it is feasible. So the points of one batch spread out, and none is near a known one.
  ``plain`` trusts the surrogates' means, as MAP does; ``bayesian`` their uncertainty too: it
  searches mean + deviation and integrates over what may come out (Bayesian MAP's aim; its bins of
  angles, of which empty ones are never sampled, are not needed for it).
* ``nested`` (Nested MAP) makes the design pairwise along the experts:
  :mod:`evomerge.optimizers.nested`.
* PRUNED trials are fitted where the standard error of their estimate, in normalised units, is at
  most ``pruned_below``; they are never on the observed front. FAILED ones are not fitted. Points
  of either are not proposed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from evomerge.constraints import Constraints
from evomerge.errors import ConfigError, unknown_name
from evomerge.optimizers import surrogate
from evomerge.optimizers.base import (
    Problem,
    Yardstick,
    best_and_newest,
    check_integer,
    check_number,
    counts,
    n_asked,
    n_useful,
    rng_for,
)
from evomerge.optimizers.design import SobolSequence
from evomerge.optimizers.links import LINKS
from evomerge.optimizers.nested import Experts, Tournament
from evomerge.optimizers.predicted_front import PredictedFront, best_first
from evomerge.optimizers.quadratic_form import n_terms
from evomerge.optimizers.surrogate import Surrogate
from evomerge.recipe import Matrix, Vector
from evomerge.scale import Scale
from evomerge.trial import Trial

VARIANTS = ("plain", "bayesian", "nested")

_FRONT = 1
"""Second key of the generator of a predicted front; a trial's generator has only one."""
_N_EXPLORE = 64
_SAME = 1e-9
"""Two points closer than this in every coordinate are the same."""


class MapQuadratic:
    """MAP for one, two or many objectives, with constraints.

    While a reference point is pending, :meth:`ask` returns points of the design only; none
    of ``nested``, whose pairs follow from scores.

    Args:
        problem: What is optimised; its start is the first point of the design.
        variant: ``"plain"``, ``"bayesian"`` or ``"nested"``; see the module.
        n_design: Trials before the first fit, >= 4; None for the number of terms of a full
            quadratic, at most 2 d + 4 and at most 40. Of ``nested``, the tournament decides.
        n_refine: Trials between two fits, >= 1; from 40 of it on a twentieth of the trials told.
        n_pair: Trials per pair of a ``nested`` tournament, >= 1.
        surrogates: What to choose from, of ``"full"``, ``"diagonal"``, ``"linear"`` and ``"gp"``.
        links: Links of the quadratic forms, of ``"identity"``, ``"sigmoid"`` and ``"softplus"``.
        optimism: Standard deviations that ``bayesian`` adds to the mean it searches; >= 0.
        min_distance: A proposed point differs from every known one by more than this in at least
            one coordinate; in [0, 1).
        n_generations: Generations of NSGA-III on the surrogates, >= 1.
        max_data: Most trials that the surrogates are fitted to, >= 10.
        pruned_below: Largest standard error, in normalised units, at which a PRUNED trial's
            estimate is fitted; 0: never.

    Attributes:
        pareto: True for two objectives or more.
        needs_geometry: True: it tells which axes belong to which expert.
        expensive: True: an ask that refits takes a second or so; figures in
            ``conf/optimizer/map_quadratic.yaml``.

    Raises:
        ConfigError: A setting that does not make sense, or ``nested`` where axes do not belong to
            experts.
        UnknownNameError: An unknown variant, surrogate or link.
    """

    needs_geometry = True
    expensive = True

    def __init__(
        self,
        problem: Problem,
        *,
        variant: str = "plain",
        n_design: int | None = None,
        n_refine: int = 2,
        n_pair: int = 3,
        surrogates: Sequence[str] = surrogate.KINDS,
        links: Sequence[str] = tuple(LINKS),
        optimism: float = 1.0,
        min_distance: float = 0.02,
        n_generations: int = 25,
        max_data: int = 300,
        pruned_below: float = 0.1,
    ) -> None:
        if variant not in VARIANTS:
            raise unknown_name("variant", variant, VARIANTS)
        if n_design is not None:
            check_integer("n_design", n_design, 4)
        check_integer("n_refine", n_refine, 1)
        check_integer("n_pair", n_pair, 1)
        check_integer("n_generations", n_generations, 1)
        check_integer("max_data", max_data, 10)
        if pruned_below != 0:
            check_number("pruned_below", pruned_below, 0)
        self._pruned_below = float(pruned_below)
        if optimism != 0:
            check_number("optimism", optimism, 0)
        if min_distance != 0:
            check_number("min_distance", min_distance, 0, 1)
        self._kinds = _chosen("surrogates", surrogates, surrogate.KINDS)
        self._links = _chosen("links", links, tuple(LINKS))
        self._problem, self._dim, self._seed = problem, problem.dim, problem.seed
        self._optimism = float(optimism) if variant == "bayesian" else None
        self._min_distance, self._max_data = float(min_distance), int(max_data)
        self._n_refine, self._n_generations = int(n_refine), int(n_generations)
        self.pareto = len(problem.optimised) > 1
        self._yardstick = Yardstick(problem)
        self._n_searched = 0
        self._told: list[Vector] = []
        self._scored: list[Trial] = []
        self._data: list[Trial] = []  # what is fitted: the scored ones and precise estimates
        self._n_fitted = 0
        self._n_due = 0
        self._cached: tuple[tuple[int, Scale, Constraints], PredictedFront, Matrix] | None = None
        terms = n_terms("full", self._dim)
        self._n_design = n_design or max(4, min(terms, 2 * self._dim + 4, 40))
        self._design = [problem.start.copy()]
        self._tournament: Tournament | None = None
        experts = Experts.of(problem)
        if variant == "nested":
            if experts is None:
                raise ConfigError(
                    "variant: 'nested' pairs experts, and so needs axes that move one expert "
                    "each; in this space an axis moves two. Use 'plain' or 'bayesian'."
                )
            self._tournament = Tournament(experts, problem, n_pair)
        elif experts is not None and len(experts.alone) <= self._n_design // 2:
            self._design += [x.copy() for x in experts.alone]
        self._sobol = SobolSequence(self._dim, problem.seed, self._n_design)

    @property
    def surrogates(self) -> Mapping[str, Surrogate]:
        """Objective name to its current surrogate, with ``name`` and leave-one-out ``r2``.

        Of raw values, in the objective's own direction. Empty during the design.
        """
        return {} if self._n_fitted == 0 else dict(self._fit()[0].models)

    @property
    def note(self) -> str:
        """How well the surrogates predict what they have not seen."""
        parts = [f"{n} {s.r2:.2f} ({s.name})" for n, s in self.surrogates.items()]
        return "leave-one-out R2 of the surrogates: " + ", ".join(parts) if parts else ""

    def ask(self, n: int, first: int, pending: Sequence[Trial] = ()) -> list[Vector]:
        """Proposes ``n`` points of shape (d,), of the design only while a reference is pending."""
        waiting = [
            np.array(t.x, dtype=np.float64) for t in pending if counts(t) and t.x is not None
        ]
        n_design = self._n_design - self._n_searched - n_asked(pending)
        if self._open_tournament is not None:
            n_design = 0
        points: list[Vector] = []
        for i in range(n_useful(n, n_design, pending)):
            points.append(self._propose(rng_for(self._seed, first + i), [*waiting, *points]))
        return [x.copy() for x in points]

    def tell(self, trials: Sequence[Trial]) -> None:
        """Takes finished trials in told order; marks when the next fit is due."""
        for trial in trials:
            if not counts(trial):
                continue
            self._yardstick.tell(trial)
            if trial.x is not None:
                self._told.append(np.array(trial.x, dtype=np.float64))
                if self._yardstick.is_scored(trial):
                    self._scored.append(trial)
                    self._data.append(trial)
                elif self._yardstick.is_precise(trial, self._pruned_below):
                    self._data.append(trial)
            if trial.kind != "search":
                continue
            self._n_searched += 1
            if self._open_tournament is not None:
                self._open_tournament.advance(self._n_searched, self._data, self._yardstick)
                self._n_design = self._n_searched
                is_due = self._open_tournament is None
            else:
                # Fits get dearer and teach less: at 1,000 trials one in fifty is enough.
                step = max(self._n_refine, self._n_searched // 20)
                since = self._n_searched - max(self._n_due, self._n_design)
                is_due = self._n_searched == self._n_design or since >= step
            if is_due:
                self._n_fitted, self._n_due = len(self._data), self._n_searched

    @property
    def _open_tournament(self) -> Tournament | None:
        """The tournament of ``nested`` until it is over."""
        tournament = self._tournament
        return tournament if tournament is not None and not tournament.is_over else None

    def _propose(self, rng: np.random.Generator, waiting: Sequence[Vector]) -> Vector:
        """One new point.

        Args:
            rng: Its own generator.
            waiting: Points asked for and not yet told.
        """
        taken = np.array([*self._told, *waiting], dtype=np.float64).reshape(-1, self._dim)
        if self._open_tournament is not None:
            for x in self._open_tournament.points():
                if not _is_near(x, taken, _SAME):
                    return x
        elif self._n_fitted:
            front, pool = self._fit()
            pool = pool[[not _is_near(x, taken, self._min_distance) for x in pool]]
            if len(pool):
                known = [
                    self._yardstick.normalised(t)
                    for t in self._scored
                    if self._yardstick.violation(t) == 0
                ]
                F = np.array(known).reshape(len(known), len(self._problem.optimised))
                gains = front.gains(pool, taken[len(self._told) :], F, rng)
                if gains.max() > 0:
                    return np.array(pool[int(np.argmax(gains))])
            if not front.is_flat:
                return self._explore(front, rng)
        return self._design_point(taken, rng)

    def _explore(self, front: PredictedFront, rng: np.random.Generator) -> Vector:
        """Where nothing promises a gain: of some uniform points, a likely feasible, unsure one."""
        X = rng.random((_N_EXPLORE, self._dim))
        p = front.predict(X)
        return np.array(X[int(np.argmax(p.feasible() * (1e-9 + p.deviation.sum(axis=1))))])

    def _design_point(self, taken: Matrix, rng: np.random.Generator) -> Vector:
        """The first point of the design that is not taken; the design never ends."""
        for x in self._design:
            if not _is_near(x, taken, _SAME):
                return x.copy()
        for k in range(len(taken) + 1):
            x = self._sobol[k]
            if not _is_near(x, taken, _SAME):
                return x
        return rng.random(self._dim)

    def _fit(self) -> tuple[PredictedFront, Matrix]:
        """The current surrogates and their front (k, d), made when first needed."""
        # Reference points define the units, also those told since.
        key = self._n_fitted, self._yardstick.scale, self._yardstick.constraints
        if self._cached is None or self._cached[0] != key:
            known = self._data[: self._n_fitted]
            order = best_first(known, self._yardstick).tolist()
            trials = best_and_newest(known, order, self._max_data)
            front = PredictedFront(
                self._problem,
                self._yardstick,
                trials,
                kinds=self._kinds,
                links=self._links,
                optimism=self._optimism,
            )
            pool = np.zeros((0, self._dim))
            if not front.is_flat:
                rng = rng_for(self._seed, self._n_fitted, _FRONT)
                pool = front.search(self._n_generations, rng)
            self._cached = key, front, pool
        return self._cached[1:]


def _is_near(x: Vector, taken: Matrix, distance: float) -> bool:
    """Whether ``x`` is within ``distance`` of one of the (t, d) points in every coordinate."""
    return bool((np.abs(taken - x) <= distance).all(axis=1).any())


def _chosen(name: str, given: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The names, checked."""
    if isinstance(given, str) or not given:
        raise ConfigError(
            f"{name}: expected a list of at least one of {list(known)}, got {given!r}."
        )
    for item in given:
        if item not in known:
            raise unknown_name(name, item, known)
    return tuple(given)
