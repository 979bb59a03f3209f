"""Finds lm-eval tasks, loads them and checks what is asked of them.

lm-eval indexes 14,000 task files in about ten seconds, and passes over a file that it cannot read.
Here the folders of ``include_path`` are looked through first, unreadable files are errors, and a
task that was found once is loaded from its file from then on, in any process, without an index.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import logging
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import ConfigError, TaskError, unknown_name
from evomerge.evaluators.answers import COLLAPSE, OUTPUT_TOKENS, beside
from evomerge.evaluators.groups import Group, find_group
from evomerge.evaluators.options import Options
from evomerge.trial import Objective


@dataclasses.dataclass(frozen=True)
class TaskSource:
    """Where a task is defined.

    Attributes:
        name: Name of the task.
        file: Its YAML file: absolute, or relative to the lm_eval package.
        include: The folder of ``include_path`` it was found in; None for lm-eval's own tasks.
    """

    name: str
    file: str
    include: str | None

    @property
    def path(self) -> Path:
        """The YAML file on this machine."""
        return Path(self.file) if self.include is not None else _package() / self.file

    def code_hash(self) -> str:
        """Hash of the Python files beside the YAML file: ``!function`` runs what is in them."""
        digest = hashlib.sha256()
        for file in sorted(self.path.parent.glob("*.py")):
            digest.update(f"{file.name}\0".encode() + file.read_bytes())
        return digest.hexdigest()


@contextlib.contextmanager
def lean() -> Iterator[None]:
    """lm-eval without log lines and progress bars, and with each template compiled once.

    On its own it compiles a task's jinja templates again for every document: nearly all of what
    building a request, and scoring an answer, costs it.
    """
    import datasets
    import lm_eval.api.task as task_module
    import lm_eval.utils

    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "transformers")]
    levels = [logger.level for logger in loggers]
    bars = datasets.are_progress_bars_disabled()
    tqdm, jinja = task_module.tqdm, lm_eval.utils.env
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        datasets.disable_progress_bars()
        task_module.tqdm = _no_bar
        jinja.from_string = _compiled
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
        task_module.tqdm = tqdm
        vars(jinja).pop("from_string", None)


def include_folders(include_path: str | Path | Sequence[str | Path] | None) -> tuple[str, ...]:
    """The folders of ``include_path``, absolute.

    Raises:
        TaskError: For one that is not a folder.
    """
    if include_path is None:
        return ()
    given = [include_path] if isinstance(include_path, str | Path) else list(include_path)
    folders = [Path(folder).expanduser().resolve() for folder in given]
    for folder in folders:
        if not folder.is_dir():
            raise TaskError(f"include_path: {folder} is not a folder.")
    return tuple(map(str, folders))


def list_tasks(include_path: str | Path | Sequence[str | Path] | None = None) -> list[str]:
    """Names of the tasks in ``include_path``, or of lm-eval's own (ten seconds) without one.

    Raises:
        TaskError: For a YAML file in ``include_path`` that cannot be read.
    """
    folders = include_folders(include_path)
    with lean():
        manager = _included(folders) if folders else _stock()
    return list(manager.all_subtasks)


def find_tasks(
    names: Sequence[str], folders: Sequence[str]
) -> tuple[dict[str, TaskSource], dict[str, Group]]:
    """Finds tasks and groups by name: in ``folders``, else among lm-eval's own.

    Args:
        names: Names of tasks and of groups that have a score.
        folders: As :func:`include_folders` returns them.

    Returns:
        One source per task, those of groups included, and the groups.

    Raises:
        TaskError: For an unreadable YAML file, a group without a score, or a tag.
        UnknownNameError: For a name that nobody knows.
    """
    with lean():
        included = _included(folders) if folders else None

        def manager_of(name: str) -> Any:
            known = included is not None and name in included.task_index
            manager = included if known else _stock()
            _check_known(name, manager, included, folders)
            return manager

        found: dict[str, TaskSource] = {}
        groups: dict[str, Group] = {}
        for name in names:
            manager = manager_of(name)
            if name in manager.all_groups or name in manager.all_tags:
                groups[name] = find_group(name, manager_of)
            for task in groups[name].tasks if name in groups else (name,):
                manager = manager_of(task)
                found[task] = _source(task, manager, manager is included, folders)
    return found, groups


def load_task(source: TaskSource, options: Options) -> Any:
    """Builds a task and loads its documents; applies the options as the stock harness does.

    Args:
        source: Where it is defined.
        options: What is set for every task.

    Returns:
        The lm-eval ``Task``.

    Raises:
        TaskError: When it cannot be built, its documents cannot be loaded, or it is of a kind
            that cannot be scored here.
    """
    from lm_eval.tasks import TaskManager

    folder = options.folder if Path(options.folder).is_dir() else "."
    try:
        with lean(), _seeded(), contextlib.chdir(folder):
            task = TaskManager(include_defaults=False).load([str(source.path)])["tasks"][
                source.name
            ]
            _apply(task, options)
    except Exception as err:
        reason = next(iter(str(err).splitlines()), "")
        raise TaskError(
            f"task {source.name!r} ({source.path}) could not be loaded: {type(err).__name__}: "
            f"{reason.rstrip('.')}. If its data set is on the Hugging Face Hub, it needs the "
            f"network or a filled cache; relative data_files are relative to {options.folder}."
        ) from err
    if getattr(task, "MULTIMODAL", False):
        raise TaskError(f"task {source.name!r} asks about images or sound; only text is scored.")
    if getattr(task, "UNSAFE_CODE", False) and not options.confirm_run_unsafe_code:
        raise TaskError(
            f"task {source.name!r} executes code that the model writes. Set "
            "evaluator.confirm_run_unsafe_code=true if that is what you want."
        )
    return task


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Some tasks shuffle their documents (gpqa): with the seed that the stock harness sets."""
    state = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(state)


def check_objective(objective: Objective, task: Any) -> None:
    """Checks metric, filter and direction of an objective against its task.

    A metric function of the task's own may return further names (``pass@1``); such a task accepts
    any metric here, and the first scoring tells.

    Raises:
        UnknownNameError: For a metric or filter that the task does not have.
        ConfigError: For a direction that contradicts the task.
    """
    where = f"objective {objective.name!r}, task {objective.task!r}:"
    measured = beside(task.get_config("output_type"))
    known = [*task.aggregation(), *measured]
    configured = task.get_config("metric_list") or []
    open_ended = any(callable(m.get("metric")) or m.get("hf_evaluate") for m in configured)
    if objective.metric not in known and (not open_ended or objective.metric == OUTPUT_TOKENS):
        raise unknown_name("metric", objective.metric, known, f"({where[:-1]})")
    filters = [f.name for f in getattr(task, "_filters", [])] or ["none"]
    if objective.filter not in filters:
        raise unknown_name("filter", objective.filter, filters, f"({where[:-1]})")
    higher = (task.higher_is_better() | {COLLAPSE: False}).get(objective.metric)
    if higher is not None and bool(higher) != (objective.direction == "maximize"):
        raise ConfigError(
            f"{where} its metric {objective.metric!r} is better when "
            f"{'higher' if higher else 'lower'}, but direction is {objective.direction!r}; "
            f"write direction: {'maximize' if higher else 'minimize'}."
        )


def _apply(task: Any, options: Options) -> None:
    """What ``simple_evaluate`` does to a task before it builds requests."""
    if options.gen_kwargs and task.get_config("output_type") == "generate_until":
        task.set_config("generation_kwargs", dict(options.gen_kwargs), update=True)
    own = task.get_config("num_fewshot")
    if options.num_fewshot is not None and own != 0:
        task.set_config("num_fewshot", options.num_fewshot)
    elif own is None:
        task.set_config("num_fewshot", 0)


def _included(folders: Sequence[str]) -> Any:
    """A TaskManager of these folders only, after every YAML file in them was read."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    for folder in folders:
        for file in sorted(Path(folder).glob("**/*.yaml")):
            if {"__pycache__", ".ipynb_checkpoints"} & set(file.parts):
                continue
            try:
                load_yaml(file, resolve_func=False)
            except yaml.MarkedYAMLError as err:
                mark = err.problem_mark or err.context_mark
                line = f":{mark.line + 1}" if mark else ""
                raise TaskError(f"{file}{line}: not valid YAML: {err.problem}.") from err
            except (yaml.YAMLError, OSError, ValueError, TypeError, RecursionError) as err:
                raise TaskError(f"{file}: cannot be read as a task: {err}.") from err
    return TaskManager(include_path=list(folders), include_defaults=False)


@functools.cache
def _stock() -> Any:
    """lm-eval's own tasks. Ten seconds, once per process."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _check_known(name: str, manager: Any, included: Any | None, folders: Sequence[str]) -> None:
    """Raises UnknownNameError for a name that lm-eval does not know."""
    if name not in manager.task_index:
        known = [*manager.all_subtasks, *(included.all_subtasks if included else ())]
        hint = "Tasks of your own are *.yaml files in evaluator.include_path" + (
            f" ({', '.join(folders)})." if folders else "."
        )
        raise unknown_name("task", name, known, hint)


def _source(name: str, manager: Any, own: bool, folders: Sequence[str]) -> TaskSource:
    """The source of one task; ``own``: it lies in one of the folders."""
    file = Path(manager.task_index[name].yaml_path)
    if not own:
        return TaskSource(name, file.resolve().relative_to(_package()).as_posix(), None)
    include = next(folder for folder in folders if file.is_relative_to(folder))
    return TaskSource(name, str(file), include)


def _package() -> Path:
    """The installed lm_eval package."""
    import lm_eval

    return Path(str(lm_eval.__file__)).resolve().parent


@functools.lru_cache(maxsize=1024)
def _compiled(template: str) -> Any:
    """A jinja template, compiled in lm-eval's environment."""
    import lm_eval.utils

    env = lm_eval.utils.env
    return type(env).from_string(env, template)


def _no_bar(iterable: Any, **_: Any) -> Any:
    """Stands in for tqdm."""
    return iterable
