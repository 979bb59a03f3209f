"""``warm_start``: recipes of earlier runs and files as points to start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.errors import ConfigError, EvomergeError

if TYPE_CHECKING:
    from evomerge.experts import ExpertPool
    from evomerge.recipe import Recipe, Vector
    from evomerge.space import SearchSpace

N_FRONT = 5
"""How many points of another run's front a Pareto search starts from."""


def warm_starts(
    given: Any, space: SearchSpace, pool: ExpertPool, *, pareto: bool
) -> list[tuple[str, Recipe, Vector | None]]:
    """Reads ``warm_start``.

    Args:
        given: A list of run folders, recipe files and ``{run: FOLDER, pick: SPEC}``.
        space: Encodes what it can express.
        pool: The models, which every recipe must be made of.
        pareto: Whether the search is for a front.

    Returns:
        (label, recipe, x or None) of each; x is None for a recipe outside the space, which is
        scored beside the reference points but not started from.

    Raises:
        ConfigError: An entry of another form, or a recipe of other models.
        EvomergeError: A run or recipe that cannot be read, or a run with nothing to pick.
    """
    from evomerge.materialize import check_recipe

    if isinstance(given, str | Mapping):
        given = [given]
    if not isinstance(given, Sequence):
        raise ConfigError(f"warm_start: expected a list of runs and recipe files, got {given!r}.")
    found: dict[str, tuple[str, Recipe, Vector | None]] = {}
    for entry in given:
        for label, recipe in _recipes(entry, pareto):
            try:
                check_recipe(recipe, pool)
            except EvomergeError as e:
                raise ConfigError(f"warm_start: {label}: {e}") from e
            try:
                x: Vector | None = space.encode(recipe)
            except ConfigError:
                x = None
            found.setdefault(recipe.id, (label, recipe, x))
    return list(found.values())


def _recipes(entry: Any, pareto: bool) -> list[tuple[str, Recipe]]:
    """Labelled recipes of one entry."""
    from evomerge.choose import finalists
    from evomerge.pick import pick
    from evomerge.recipe import Recipe
    from evomerge.store import open_run

    spec = None
    if isinstance(entry, Mapping):
        if set(entry) != {"run", "pick"}:
            raise ConfigError(f"warm_start: expected {{run: FOLDER, pick: SPEC}}, got {entry!r}.")
        entry, spec = entry["run"], str(entry["pick"])
    path = Path(str(entry)).expanduser()
    if path.suffix in {".yaml", ".yml"} and spec is None:
        try:
            return [(f"recipe {path.name}", Recipe.from_yaml(path.read_text()))]
        except OSError as e:
            raise ConfigError(f"warm_start: {path}: {e.strerror}.") from e
    run = open_run(path)
    chosen = [pick(run, spec or "best")]
    if spec is None and pareto and run.meta.get("pareto"):
        chosen = finalists(run, N_FRONT) or chosen
    return [(f"{t.name} of {path.name}", t.recipe) for t in chosen]
