"""evomerge: search for the coefficients of a model merge.

In Python and in notebooks::

    import evomerge

    run = evomerge.search("mine.yaml", n_trials=20, optimizer="nsga2")
    run = evomerge.open_run("runs/mine-nsga2-s0-1a2b3c4d")
    run.trials, run.front(), run.best(), run.recipe(12), run.verdict

Floors, each importing only lower ones (``tests/test_architecture.py`` holds them):

1. :mod:`evomerge.errors`, :mod:`evomerge.pareto`
2. :mod:`evomerge.recipe`, :mod:`evomerge.methods`
3. :mod:`evomerge.trial`, :mod:`evomerge.space`, :mod:`evomerge.experts`
4. :mod:`evomerge.materialize`, :mod:`evomerge.store`, :mod:`evomerge.optimizers`,
   :mod:`evomerge.evaluators`
5. :mod:`evomerge.executors`, :mod:`evomerge.report`, :mod:`evomerge.export`
6. :mod:`evomerge.study`, :mod:`evomerge.zoo`, :mod:`evomerge.opened`
7. :mod:`evomerge.cli`
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["open_run", "search"]

_HOMES = {"open_run": "evomerge.opened", "search": "evomerge.cli.notebook"}


def __getattr__(name: str) -> Any:
    """Finds :data:`_HOMES` when they are first used: importing evomerge loads nothing heavy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
