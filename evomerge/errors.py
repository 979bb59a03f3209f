"""Every error that evomerge raises on purpose.

All derive from :class:`EvomergeError`, so that the command line can turn each into one line and
exit code 2; each also derives from the fitting builtin, so that library users can catch what
they expect to catch. A message says what was expected, what was got and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EvomergeError(Exception):
    """The base of every error that evomerge raises on purpose."""


class ConfigError(EvomergeError, ValueError):
    """A setting, search space or recipe that does not make sense."""


class UnknownNameError(EvomergeError, LookupError):
    """A name (method, optimizer, task, ...) that is not known."""


class CheckpointError(EvomergeError, ValueError):
    """A checkpoint that cannot be read, or cannot be merged with the others."""


class TaskError(EvomergeError, ValueError):
    """A task or its documents that cannot be used."""


class RunFolderError(EvomergeError, RuntimeError):
    """A run folder that is in use, damaged, or belongs to another configuration."""


class ExportError(EvomergeError, OSError):
    """An export that could not be written; nothing half-written is left behind."""


class StudyError(EvomergeError, RuntimeError):
    """A study that cannot go on, for example because every first trial failed."""


def unknown_name(kind: str, name: str, known: Iterable[str], hint: str = "") -> UnknownNameError:
    """Builds the error for an unknown name, with the nearest known ones.

    Args:
        kind: What the name should have named, in the singular: ``"merge method"``.
        name: What was asked for.
        known: Every name that would have worked.
        hint: What to do next, appended as it is.

    Returns:
        The error, to be raised by the caller.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    message = f"unknown {kind} {name!r}."
    if near:
        message += " Did you mean " + " or ".join(repr(n) for n in near) + "?"
    shown = ", ".join(names[:20]) + (f", ... ({len(names)} in all)" if len(names) > 20 else "")
    message += f" Known: {shown or 'none'}."
    return UnknownNameError(message + (f" {hint}" if hint else ""))


def no_document_scores(name: str, metric: str, who: str) -> ConfigError:
    """The refusal of an objective without scores per document, for ``who`` lives on them."""
    way_out = "racing=off" if who == "racing" else "take another optimizer, such as nsga2"
    return ConfigError(
        f"objective {name!r}: its metric {metric!r} is computed over the whole corpus and has no "
        f"score per document, which {who} needs. Choose a metric that is a mean over documents "
        "(an accuracy, bits per byte), set 'search: false' and no bound for this objective, or "
        f"{way_out}."
    )
