"""Which trial a user asks for: ``best``, ``knee``, weights, bounds, or a number.

The grammar of a pick with bounds is a list of terms separated by commas::

    OBJECTIVE>=95%         a bound, normalised: of the best expert (see evomerge.scale)
    OBJECTIVE>=0.4         a bound in the objective's own units, where higher is better
    OBJECTIVE<=1.2         the same where lower is better
    OBJECTIVE, OBJECTIVE:2 a goal and its weight; without goals the search's own measure counts

So ``math>=95%,code`` keeps 95% of the best math expert and is then the best on code.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from evomerge import pareto
from evomerge.choose import best_merge, merged_front, merges, normalised, original, reason
from evomerge.compare import constraints_of, is_scored, scale_of
from evomerge.constraints import Constraints
from evomerge.errors import ConfigError, UnknownNameError, unknown_name
from evomerge.run import Run
from evomerge.trial import Objective, Trial, TrialState

SPECS = ("best", "knee", "trial=N", "weights=OBJECTIVE:W,OBJECTIVE:W", "OBJECTIVE>=95%,OBJECTIVE")
"""What :func:`pick` understands."""


def pick(run: Run, spec: str) -> Trial:
    """The trial that a user asks for.

    Args:
        run: Any run, finished or not.
        spec: ``best``: highest scalarised score on the select documents among the finalists
            that were scored there, else on the search documents; bounds come first. Merges only,
            reference merges such as the uniform average among them: a single expert can be used
            as it is, and :func:`evomerge.verdict.verdict` says when it should be. ``knee``: the
            best trade-off of the front. ``weights=math:2,code:1``: the front's highest weighted
            sum of normalised scores. ``math>=95%,code``: of the merges that keep these bounds
            (and the search's own) the best on code, by their scores on the search documents.
            ``trial=17``: that one.

    Returns:
        The trial as it was scored during the search; never a FAILED one.

    Raises:
        ConfigError: A spec that makes no sense, a run with nothing to pick, or bounds that no
            merge keeps.
        UnknownNameError: An unknown spec, objective or trial.
    """
    text = spec.strip()
    key, equals, value = text.partition("=")
    if key == "trial" and equals:
        return _numbered(run, value)
    if key == "weights" and equals:
        return _weighted(run, value)
    if text == "best":
        return original(run, best_merge(run))
    if text == "knee":
        scale, members = scale_of(run, "search"), merged_front(run)
        return members[int(pareto.knee(normalised(members, scale)))]
    if ">=" in text or "<=" in text:
        return _bounded(run, text)
    hint = f"To export trial {key}, ask for trial={key}." if key.isdecimal() else ""
    raise unknown_name("pick", spec, SPECS, hint)


def _numbered(run: Run, text: str) -> Trial:
    """``trial=N``."""
    if not text.strip().isdecimal():
        raise ConfigError(f"trial={text}: expected a trial number, as in trial=17.")
    number = int(text)
    found = [t for t in (*run.trials, *run.running) if t.number == number]
    if not found:
        numbers = [t.number for t in (*run.trials, *run.running)]
        known = f"{min(numbers)} to {max(numbers)}" if numbers else "no trials"
        raise UnknownNameError(
            f"unknown trial {number}; {run.path} has {known}. See `evomerge report {run.path}`."
        )
    trial = next((t for t in found if t.split == "search"), found[0])
    if trial.state is TrialState.FAILED:
        raise ConfigError(
            f"trial {number} failed ({reason(trial)}); expected a COMPLETE one, such as "
            "--pick best."
        )
    if trial.state is TrialState.RUNNING:
        raise ConfigError(f"trial {number} is still running; wait for it, or pick another.")
    return trial


def _weighted(run: Run, text: str) -> Trial:
    """``weights=math:2,code:1``."""
    scale = scale_of(run, "search")
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, colon, number = part.rpartition(":")
        if not colon:
            raise ConfigError(f"weights={text}: expected OBJECTIVE:WEIGHT, got {part.strip()!r}.")
        _add_weight(run, f"weights={text}", weights, name.strip(), number)
    if not any(weights.values()):
        raise ConfigError(f"weights={text}: at least one weight must be above 0.")
    members = merged_front(run)
    values = normalised(members, scale) @ [weights.get(name, 0.0) for name in scale.names]
    return members[int(np.argmax(values))]


def _bounded(run: Run, text: str) -> Trial:
    """``math>=95%,code``: the bounds first, then the goals."""
    bounded: dict[str, Objective] = {}
    weights: dict[str, float] = {}
    for part in (p.strip() for p in text.split(",")):
        term = re.fullmatch(r"(.+?)\s*(>=|<=)\s*(.+)", part)
        if term:
            _add_bound(run, text, bounded, term.groups())
            continue
        searched = {o.name for o in run.searched}
        name, colon, number = part.rpartition(":") if part not in searched else (part, "", "1")
        _add_weight(run, text, weights, name.strip() if colon else part, number if colon else "1")
    scale = scale_of(run, "search")
    asked = Constraints.fit(tuple(bounded.values()), run.trials, "search")
    own = constraints_of(run, "search")
    names = {*scale.names, *asked.names, *own.names}
    found = [t for t in merges(run) if is_scored(t, names)]
    if not found:
        merged_front(run)  # says why there is nothing
    kept = [t for t in found if asked.kept(_values(t))]
    if not kept:
        raise _nobody(run, text, found, asked)
    kept = [t for t in kept if own.kept(_values(t))] or kept

    def goal(trial: Trial) -> float:
        if not any(weights.values()):
            return scale.scalar(_values(trial))
        score = scale.normalise(_values(trial))
        return sum(w * score[n] for n, w in weights.items())

    return max(kept, key=lambda t: (goal(t), -t.number))


def _add_bound(run: Run, text: str, bounded: dict[str, Objective], term: tuple[str, ...]) -> None:
    """One ``OBJECTIVE>=VALUE``, as (objective, sign, value)."""
    name, sign, value = term
    guiding = {o.name: o for o in run.guiding}
    if name not in guiding:
        raise _unknown(run, name, tuple(guiding))
    if name in bounded:
        raise ConfigError(f"{text}: {name!r} has two bounds; expected one.")
    objective = guiding[name]
    wanted = ">=" if objective.direction == "maximize" or value.endswith("%") else "<="
    if sign != wanted:
        better = "higher" if wanted == ">=" else "lower"
        what = "normalised scores are" if value.endswith("%") else f"{name} is"
        raise ConfigError(
            f"{text}: {what} better when {better}; expected {name}{wanted}{value}, got "
            f"{name}{sign}{value}."
        )
    bounded[name] = dataclasses.replace(objective, bound=value.strip())


def _add_weight(run: Run, text: str, weights: dict[str, float], name: str, number: str) -> None:
    """One ``OBJECTIVE:WEIGHT``."""
    known = tuple(o.name for o in run.searched)
    if name not in known:
        raise _unknown(run, name, known)
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise ConfigError(f"{text}: expected a weight >= 0, got {number.strip()!r}.")
    if name in weights:
        raise ConfigError(f"{text}: objective {name!r} is named twice.")
    weights[name] = weight


def _unknown(run: Run, name: str, known: tuple[str, ...]) -> UnknownNameError:
    hint = ""
    if name in {o.name for o in run.objectives}:
        hint = f"{name!r} is only reported: no trial of the search was scored on it."
    return unknown_name("objective", name, known, hint)


def _nobody(run: Run, text: str, found: list[Trial], asked: Constraints) -> ConfigError:
    """No merge keeps the bounds: which comes nearest, and how near."""
    nearest = min(found, key=lambda t: (asked.violation(_values(t)), t.number))
    objectives = {o.name: o for o in run.objectives}
    scale = scale_of(run, "search")
    near = scale.normalise(_values(nearest))
    parts = []
    for name in asked.broken(_values(nearest)):
        o = objectives[name]
        share = f" ({near[name]:.1%} normalised)" if name in near else ""
        parts.append(f"{name} is {o.sign * _values(nearest)[name]:.4g}{share}")
    return ConfigError(
        f"{text}: no merge keeps that. The nearest is {nearest.name}, whose "
        f"{' and '.join(parts)}: ask for less, or search with the bound "
        "(objective.NAME.bound=...)."
    )


def _values(trial: Trial) -> Mapping[str, float]:
    return trial.scores.values if trial.scores else {}
