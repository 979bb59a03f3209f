"""``evomerge.search``: the same search as on the command line, from Python."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from evomerge.cli import set_environment
from evomerge.errors import ConfigError
from evomerge.opened import OpenedRun, open_run

_WORDS = {"null", "true", "false", "nan", "inf"}
"""What Hydra does not take for a text unless it is quoted."""


def search(
    config: Path | str | Mapping[str, Any] | None = None,
    *,
    quiet: bool = False,
    extend: int | None = None,
    **settings: Any,
) -> OpenedRun:
    """Searches a merge, or goes on with a search; what ``evomerge search`` does.

    Args:
        config: A YAML file or what it would hold; None searches the zoo.
        quiet: No live view and no report.
        extend: This many more trials than the run has.
        **settings: Overrides by their names on the command line: ``n_trials=20``,
            ``optimizer="nsga2"``, ``**{"evaluator.num_fewshot": 5}``. Values are plain data; a
            mapping sets what is in it and leaves the rest.

    Returns:
        The run, opened.

    Raises:
        EvomergeError: Whatever is wrong with the configuration, or stops the search.
        KeyboardInterrupt: It was interrupted; the same call continues.

    Examples:
        >>> import evomerge
        >>> run = evomerge.search(mine, n_trials=4, run_dir=folder, quiet=True)
        >>> run.best().number == evomerge.open_run(folder).best().number
        True
    """
    set_environment()
    from evomerge.cli.compose import run_hydra
    from evomerge.cli.mistakes import hydra_mistake

    overrides = [f"{k}={_spelled(v)}" for k, v in _flat(settings)]
    with tempfile.TemporaryDirectory() as folder:
        arguments = [] if config is None else [str(config)]
        if isinstance(config, Mapping):
            path = Path(folder) / "own.yaml"
            path.write_text(yaml.safe_dump(dict(config), sort_keys=False))
            arguments = [str(path)]
        arguments += overrides
        try:
            (found,) = run_hydra(arguments, extend=extend, quiet=quiet)
        except Exception as e:
            line = hydra_mistake(e, arguments)
            if line is None:
                raise
            raise ConfigError(line) from e
    return open_run(found)


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and their values."""
    for key, value in settings.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _spelled(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_spelled, value))}]"
    if isinstance(value, Mapping):
        pairs = (f"{k}:{_spelled(v)}" for k, v in value.items())
        return f"{{{','.join(pairs)}}}"
    text = str(value)
    if re.fullmatch(r"[A-Za-z_./][\w./-]*", text) and text.lower() not in _WORDS:
        return text
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return f"'{escaped}'"
