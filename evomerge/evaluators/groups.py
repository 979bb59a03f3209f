"""Groups of tasks as objectives: ``mmlu`` is one number over 57 tasks.

The value is lm-eval's: the mean of the metric over the group's tasks, weighted by their documents
or not, as the group says. Its per-document values are those of its tasks one after another, so
their mean is the value, and a paired difference of two candidates is the group's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from evomerge.errors import TaskError, unknown_name
from evomerge.trial import Objective, Scores

SETTINGS = {"group", "group_alias", "task", "aggregate_metric_list", "metadata", "tag"}
"""What a group's own YAML may hold; anything else changes its tasks."""


@dataclasses.dataclass(frozen=True)
class Group:
    """A group that lm-eval has one score for.

    Attributes:
        name: Its name.
        tasks: Its tasks and those of the groups and tags in it, in lm-eval's order.
        by_size: Metric to whether tasks weigh by their number of documents; otherwise equally.
    """

    name: str
    tasks: tuple[str, ...]
    by_size: Mapping[str, bool]


def find_group(name: str, manager_of: Callable[[str], Any]) -> Group:
    """A group or tag of tasks, from lm-eval's index.

    Args:
        name: Name of a group or tag.
        manager_of: Gives the lm-eval ``TaskManager`` for a name.

    Raises:
        TaskError: When lm-eval has no score for it, or it changes the settings of its tasks.
    """
    config = manager_of(name).task_index[name].cfg or {}
    given = config.get("aggregate_metric_list") or []
    metrics = [given] if isinstance(given, dict) else given
    tasks, changed = _members(name, manager_of)
    if not metrics or changed:
        kind = "group" if name in manager_of(name).all_groups else "tag"
        why = f"changes the settings of {changed[0]}" if metrics else "has no score of its own"
        shown = ", ".join(dict.fromkeys(tasks))
        raise TaskError(
            f"{name!r} is a {kind} of tasks that {why}. Name tasks, one objective each: {shown}."
        )
    by_size = {m["metric"]: bool(m.get("weight_by_size", True)) for m in metrics}
    return Group(name, tuple(dict.fromkeys(tasks)), by_size)


def _members(name: str, manager_of: Callable[[str], Any]) -> tuple[list[str], list[str]]:
    """The tasks below a name, and those below it whose settings a group changes."""
    manager = manager_of(name)
    if name in manager.all_tags:
        return sorted(manager.task_index[name].tags), []
    if name in manager.all_groups:
        return _walk(name, manager.task_index[name].cfg or {}, manager_of)
    return [name], []


def _walk(
    name: str, config: Mapping[str, Any], manager_of: Callable[[str], Any]
) -> tuple[list[str], list[str]]:
    """As :func:`_members`, of a group's configuration."""
    tasks: list[str] = []
    changed: list[str] = [name] if set(config) - SETTINGS else []
    listed = config.get("task") or []
    for item in [listed] if isinstance(listed, str) else listed:
        if isinstance(item, dict) and isinstance(item.get("task"), list):  # defined on the spot
            found, more = _walk(str(item.get("group")), item, manager_of)
        elif isinstance(item, dict):
            member = str(item.get("group") or item.get("task"))
            found, more = _members(member, manager_of)
            more = [member, *more] if len(item) > 1 else more
        else:
            found, more = _members(str(item), manager_of)
        tasks += found
        changed += more
    return tasks, changed


def check_metric(objective: Objective, group: Group) -> None:
    """Checks that lm-eval aggregates the metric over the group.

    Raises:
        UnknownNameError: When it does not.
    """
    if objective.metric not in group.by_size:
        where = f"(objective {objective.name!r}, group {group.name!r})"
        raise unknown_name("metric", objective.metric, sorted(group.by_size), where)


def expand(objectives: Sequence[Objective], groups: Mapping[str, Group]) -> list[Objective]:
    """Objectives on tasks alone: one per task in place of one on a group."""
    parts: list[Objective] = []
    for o in objectives:
        tasks = groups[o.task].tasks if o.task in groups else ()
        parts += [dataclasses.replace(o, name=_part(o, t), task=t) for t in tasks] or [o]
    return parts


def aggregate(
    objectives: Sequence[Objective],
    groups: Mapping[str, Group],
    scores: Scores,
    n_documents: Mapping[str, int],
) -> Scores:
    """Scores of objectives from those of :func:`expand`.

    The standard error is that of a stratified sample: the tasks' own errors, weighted.

    Args:
        objectives: What was expanded.
        groups: The groups among their tasks.
        scores: Scores of the expanded objectives.
        n_documents: Task to its number of documents.
    """
    values, errors, examples = dict(scores.values), dict(scores.stderr), dict(scores.per_example)
    for o in objectives:
        if o.task not in groups:
            continue
        names = [_part(o, task) for task in groups[o.task].tasks]
        shares, _ = _shares(o, groups[o.task], n_documents)
        values[o.name] = float(shares @ [values.pop(n) for n in names])
        errors[o.name] = math.hypot(*(shares * [errors.pop(n) for n in names]))
        columns = {n: examples.pop(n) for n in names}
        known = {n: c for n, c in columns.items() if c is not None}
        examples[o.name] = None
        if len(known) == len(columns):
            examples |= join([o], groups, known, n_documents)
    order = [o.name for o in objectives]
    return dataclasses.replace(
        scores,
        values={n: values[n] for n in order},
        stderr={n: errors[n] for n in order},
        per_example={n: examples[n] for n in order},
    )


def join(
    objectives: Sequence[Objective],
    groups: Mapping[str, Group],
    columns: Mapping[str, npt.NDArray[Any]],
    n_documents: Mapping[str, int],
) -> dict[str, npt.NDArray[Any]]:
    """Per-document values of objectives from those of :func:`expand`.

    A group's are those of its tasks one after another, scaled so that their mean is its value.
    """
    joined: dict[str, npt.NDArray[Any]] = {}
    for o in objectives:
        if o.task not in groups:
            joined[o.name] = columns[o.name]
            continue
        found = [columns[_part(o, task)] for task in groups[o.task].tasks]
        _, factors = _shares(o, groups[o.task], n_documents)
        scaled = [c * f for c, f in zip(found, factors, strict=True)]
        joined[o.name] = np.concatenate(scaled).astype(found[0].dtype)
    return joined


def _shares(
    objective: Objective, group: Group, n_documents: Mapping[str, int]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Per task its share of a group's value, and what a document's value is multiplied with."""
    sizes = np.array([n_documents[task] for task in group.tasks], dtype=np.float64)
    shares = sizes if group.by_size.get(objective.metric, True) else np.ones(len(sizes))
    shares = shares / shares.sum()
    return shares, shares * sizes.sum() / sizes


def _part(objective: Objective, task: str) -> str:
    """Name of a group's objective on one of its tasks."""
    return f"{objective.name}/{task}"
