"""The command line: ``evomerge search | report | export | merge | doctor | zoo | list | import``.

* :mod:`~evomerge.cli.build`: configuration -> the objects of a study.
* :mod:`~evomerge.cli.compose`: the command line of ``evomerge search``, on Hydra, sweeps included.
* :mod:`~evomerge.cli.search`: one study, from its configuration to its report.
* :mod:`~evomerge.cli.commands`: everything else, on argparse; what it does lies in ``export``,
  ``verify``, ``doctor`` and ``methods``.
* :mod:`~evomerge.cli.notebook`: ``evomerge.search`` in Python.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from evomerge.errors import EvomergeError

__all__ = ["main"]


def set_environment() -> None:
    """Settings of the libraries below that have to be there before they are imported."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let errors reach whoever called
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Every error that evomerge raises on purpose, and Hydra's complaints about a configuration,
    become one line on stderr and exit code 2; this happens here and not inside a job, so that one
    bad job does not end the others of a sweep.

    Returns:
        The exit code: 0, 1 where ``--verify`` found a difference, 2 for a user's mistake or models
        that cannot be merged, 130 after Ctrl-C.
    """
    set_environment()
    arguments = list(sys.argv[1:] if argv is None else argv)
    from evomerge.cli import commands
    from evomerge.cli.mistakes import hydra_mistake

    try:
        return commands.run(arguments)
    except EvomergeError as e:
        print(f"evomerge: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("evomerge: interrupted; the same command continues.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        out = sys.__stdout__
        if out is None or sys.stdout is not out:
            raise  # not the reader of our output, who may leave (`evomerge list spaces | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        return 141
    except Exception as e:
        line = hydra_mistake(e, arguments)
        if line is None and isinstance(e, OSError) and e.filename is not None:
            line = f"{e.filename}: {e.strerror}."
        if line is None:
            raise
        print(f"evomerge: {line}", file=sys.stderr)
        return 2
