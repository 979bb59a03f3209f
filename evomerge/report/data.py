"""What the rooms of the report share: plain data, names made safe, files replaced in one step."""

from __future__ import annotations

import enum
import math
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.cache import appearing
from evomerge.errors import ExportError
from evomerge.recipe import Recipe
from evomerge.run import Run
from evomerge.trial import Objective, Split, Trial


def plain(value: Any) -> Any:
    """Anything to what strict JSON can hold; what has no such form becomes its ``str``."""
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    return str(value)


def replace(path: Path, content: bytes) -> None:
    """Writes a file so that readers see the old content or the new one, never half.

    Raises:
        ExportError: The file cannot be written; the old one, if any, is as it was.
    """
    try:
        with appearing(Path(path)) as part:
            part.write_bytes(content)
    except OSError as e:
        raise ExportError(
            f"cannot write {path}: {e.strerror or e}; give a file in a folder you may write to."
        ) from e


def printable(text: object) -> str:
    """A name as one line without control characters, which could rewrite a terminal.

    Neither does it hold what reverses the direction of the text after it.
    """
    shown = "".join(
        " " if c in "\n\t\r" else c if unicodedata.category(c) not in _UNSEEN else "\ufffd"
        for c in str(text).translate(_BIDI)
    )
    return shown.strip() or "(no name)"


_UNSEEN = {"Cc", "Cs", "Zl", "Zp"}
_BIDI = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], "\ufffd")


def called(trial: Trial) -> str:
    """How a table calls a trial."""
    return printable(trial.name)


def summary(recipe: Recipe, limit: int = 4) -> str:
    """A recipe in one line: the mean over the layer groups of each coefficient.

    Args:
        recipe: What to describe.
        limit: At most this many experts by name.

    Returns:
        For example ``linear: weight math .62, code .38``.
    """
    parts = []
    for parameter, matrix in recipe.coefficients.items():
        means = matrix.mean(axis=0)
        if matrix.shape[1] == 1 and len(recipe.models) > 1:
            parts.append(f"{printable(parameter)} {means[0]:.2f}")
            continue
        order = np.argsort(-np.abs(means), kind="stable")[:limit]
        named = [f"{printable(recipe.models[k].name)} {means[k]:.2f}" for k in sorted(order)]
        more = ", ..." if len(means) > limit else ""
        parts.append(f"{printable(parameter)} " + ", ".join(named) + more)
    return f"{printable(recipe.method)}: " + "; ".join(parts)


def table_split(run: Run) -> Split:
    """The split of the main table: test once something was scored there, else search."""
    return "test" if run.complete("test") else "search"


def raw(objective: Objective, trial: Trial) -> float:
    """The raw value in its own direction, NaN where it was not scored."""
    value = trial.scores.values.get(objective.name, math.nan) if trial.scores else math.nan
    return objective.sign * value
