"""What can be set for lm-eval, checked, as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.errors import ConfigError
from evomerge.trial import Objective


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of the ``lm_eval`` command that shape its scores.

    Attributes:
        num_fewshot: Examples in the prompt; None for each task's own number.
        fewshot_seed: Seed of their draw.
        apply_chat_template: Whether, or by which name, prompts go through the chat template.
        fewshot_as_multiturn: Examples as turns of a conversation; None: as the chat template.
        system_instruction: Put before every prompt.
        gen_kwargs: Update of the generation settings of generating tasks.
        batch_size: Requests per forward pass, or ``"auto"``.
        max_length: Longest input in tokens; None for what the model allows.
        confirm_run_unsafe_code: Whether tasks that execute the model's output may run.
        folder: The driver's working folder, to which relative data files are relative.
    """

    num_fewshot: int | None
    fewshot_seed: int
    apply_chat_template: bool | str
    fewshot_as_multiturn: bool | None
    system_instruction: str | None
    gen_kwargs: Mapping[str, Any] | None
    batch_size: int | str
    max_length: int | None
    confirm_run_unsafe_code: bool
    folder: str

    def __post_init__(self) -> None:
        """Raises ConfigError for values that make no sense."""
        size = self.batch_size
        if size != "auto" and (isinstance(size, str | bool) or size < 1):
            raise ConfigError(f"batch_size must be >= 1 or 'auto', got {size!r}.")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise ConfigError(f"num_fewshot must be >= 0, got {self.num_fewshot}.")
        if self.max_length is not None and self.max_length < 2:
            raise ConfigError(f"max_length must be >= 2, got {self.max_length}.")
        if self.fewshot_as_multiturn and not self.apply_chat_template:
            raise ConfigError("fewshot_as_multiturn needs apply_chat_template.")

    @property
    def multiturn(self) -> bool:
        """``fewshot_as_multiturn`` with its default resolved, as the stock command does."""
        if self.fewshot_as_multiturn is None:
            return bool(self.apply_chat_template)
        return self.fewshot_as_multiturn


def objectives_from(given: Sequence[Objective | Mapping[str, Any]]) -> tuple[Objective, ...]:
    """Objectives from a configuration.

    Raises:
        ConfigError: For none, unknown or missing fields, or a name that occurs twice.
    """
    fields = {f.name for f in dataclasses.fields(Objective)}
    objectives: list[Objective] = []
    for entry in given:
        if isinstance(entry, Objective):
            objectives.append(entry)
            continue
        if unknown := sorted(set(map(str, entry)) - fields):
            raise ConfigError(
                f"unknown field of an objective: {', '.join(unknown)}. Known: {sorted(fields)}."
            )
        if missing := [k for k in ("name", "task", "metric") if k not in entry]:
            raise ConfigError(f"objective {plain(entry)} lacks {', '.join(missing)}.")
        objectives.append(Objective(**{str(k): v for k, v in entry.items()}))
    names = [o.name for o in objectives]
    if not names:
        raise ConfigError("no objectives: name at least one task and its metric.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"objective names must be unique; twice: {', '.join(twice)}.")
    return tuple(objectives)


def plain(value: Any) -> Any:
    """Hydra's containers as dicts and lists."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(v) for v in value]
    return value
