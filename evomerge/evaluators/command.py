"""The stock ``lm_eval`` command line that scores a checkpoint on the documents of a split."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.evaluators.groups import Group
from evomerge.evaluators.options import Options
from evomerge.evaluators.tasks import TaskSource


def stock_commands(
    model_dir: str | Path,
    sources: Iterable[TaskSource],
    samples: Mapping[str, Sequence[int]] | str | Path,
    options: Options,
    groups: Iterable[Group] = (),
) -> list[str]:
    """Shell lines that reproduce the scores.

    Args:
        model_dir: The checkpoint.
        sources: The tasks.
        samples: Task to ascending indices of its documents, or a JSON file that holds that.
        options: How they are asked.
        groups: Groups to name in place of their tasks, so that lm-eval gives their scores too.

    Returns:
        One line, or one per folder where ``include_path`` has several (``lm_eval`` takes one).
    """
    by_include: dict[str | None, list[str]] = {}
    for source in sources:
        by_include.setdefault(source.include, []).append(source.name)
    if len(by_include) > 1 and None in by_include:
        own = by_include.pop(None)  # lm-eval's own tasks are known to every command
        by_include[next(iter(by_include))] += own
    lines = []
    for include, names in by_include.items():
        line = ["lm_eval", "run", "--model", "hf", "--model_args", _model_args(model_dir, options)]
        line += ["--tasks", ",".join(_with_groups(names, groups))]
        line += ["--include_path", include] if include else []
        if isinstance(samples, Mapping):
            indices = json.dumps({name: list(samples[name]) for name in names})
        else:
            indices = str(samples)
        line += ["--samples", indices, *_flags(options)]
        lines.append(shlex.join(line))
    return lines


def _with_groups(names: Sequence[str], groups: Iterable[Group]) -> list[str]:
    """Names of tasks, or of groups that stand for them; no task twice, which lm-eval refuses."""
    left, shown = list(names), []
    for group in groups:
        if set(group.tasks) <= set(left):
            shown.append(group.name)
            left = [name for name in left if name not in group.tasks]
    return [*shown, *left]


def _model_args(model_dir: str | Path, options: Options) -> str:
    """``key=value,...``, or JSON where the path would break that."""
    values: dict[str, Any] = {"pretrained": str(model_dir), "dtype": "float32"}
    if options.max_length is not None:
        values["max_length"] = options.max_length
    if set(",={ ") & set(str(model_dir)):
        return json.dumps(values)
    return ",".join(f"{k}={v}" for k, v in values.items())


def _flags(options: Options) -> list[str]:
    """Everything that does not depend on the tasks."""
    size = 8 if isinstance(options.batch_size, str) else options.batch_size
    flags = ["--batch_size", str(size), "--seed", f"0,1234,1234,{options.fewshot_seed}"]
    if options.num_fewshot is not None:
        flags += ["--num_fewshot", str(options.num_fewshot)]
    if options.gen_kwargs:
        flags += ["--gen_kwargs", json.dumps(options.gen_kwargs)]
    if options.system_instruction:
        flags += ["--system_instruction", options.system_instruction]
    if options.apply_chat_template:
        named = isinstance(options.apply_chat_template, str)
        flags += ["--apply_chat_template", *([str(options.apply_chat_template)] if named else [])]
        flags += ["--fewshot_as_multiturn", str(options.multiturn).lower()]
    if options.confirm_run_unsafe_code:
        flags.append("--confirm_run_unsafe_code")
    return flags
