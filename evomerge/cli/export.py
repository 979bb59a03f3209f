"""Export and merge: a trial or a recipe file -> a checkpoint."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.card import ModelCard, Result
from evomerge.errors import ConfigError
from evomerge.pick import pick
from evomerge.recipe import Recipe
from evomerge.run import Run
from evomerge.store import open_run
from evomerge.trial import Split, Trial

if TYPE_CHECKING:
    from evomerge.cli.verify import Check


def export_trial(
    folder: Path, spec: str, out: Path, options: dict[str, Any], *, verify: bool = False
) -> tuple[list[str], Check | None]:
    """Exports one trial of a run, finished or live.

    Args:
        folder: The run folder.
        spec: Which trial, see :func:`evomerge.pick.pick`.
        out: Where to.
        options: Passed to :func:`evomerge.export.export`.
        verify: Whether to score what was written, see :mod:`evomerge.cli.verify`.

    Returns:
        Lines for the user (what was picked, where it is, how to verify it), and the check.

    Raises:
        EvomergeError: No such run or trial, or it cannot be written.
    """
    from evomerge.export import export, pool_of

    run = open_run(folder)
    trial = pick(run, spec)
    pool = pool_of(trial.recipe)
    if options["dtype"] == "auto":  # what was scored is what is written
        options = {**options, "dtype": str((run.meta.get("config") or {}).get("dtype", "auto"))}
    lines = [f"exported {trial.name} of {folder} to {out}"]
    card = _card(run, trial)
    export(trial.recipe, out, pool=pool, card=card, on_rounded=lines.append, **options)
    split, scored = scored_last(run, trial)
    command = run.stock_command(split, out)
    if command:
        lines.append(f"verify its scores on the {split} documents with:")
        lines.append("  " + command)
    if not verify:
        return lines, None
    from evomerge.cli.verify import verify_scores

    return lines, verify_scores(run, scored, pool, out)


def merge_file(
    path: Path, out: Path, options: dict[str, Any], *, verify: bool = False
) -> tuple[list[str], Check | None]:
    """Materialises a recipe file, ours or a single-stage mergekit YAML.

    Args:
        path: The recipe.
        out: Where to.
        options: Passed to :func:`evomerge.export.export`.
        verify: Whether to load what was written and compare its tensors with the merge.

    Returns:
        Lines for the user (notes, and where it is), and the check.

    Raises:
        EvomergeError: Not a recipe, or it cannot be written.
    """
    from evomerge.export import export, pool_of

    recipe, dtype, notes = _read_recipe(path)
    if options["dtype"] == "auto":
        options = {**options, "dtype": dtype}
    lines = [*(f"note: {n}" for n in notes), f"merged {path} into {shlex.quote(str(out))}"]
    pool = pool_of(recipe)
    export(recipe, out, pool=pool, on_rounded=lines.append, **options)
    if not verify:
        return lines, None
    from evomerge.cli.verify import verify_tensors

    return lines, verify_tensors(recipe, pool, out)


def expert_folder(source: str) -> str:
    """Where an expert lies: what the user wrote, or the checkpoint of a recipe file.

    A recipe is merged once, into the cache folder, and is a model like any other from then on.

    Args:
        source: A folder, a hub id, or a recipe (``.yaml``), ours or mergekit's.

    Raises:
        EvomergeError: Not a recipe, or it cannot be written.
    """
    path = Path(source).expanduser()
    if path.suffix not in {".yaml", ".yml"}:
        return source
    from evomerge.cache import cache_folder
    from evomerge.export import export, located, pool_of

    recipe, dtype, _ = _read_recipe(path)
    pool = pool_of(recipe)
    out = cache_folder() / "merged" / f"{located(recipe, pool).id[:32]}-{dtype}"
    return str(export(recipe, out, pool=pool, dtype=dtype))


def _read_recipe(path: Path) -> tuple[Recipe, str, tuple[str, ...]]:
    """A recipe file, ours or mergekit's, the dtype to write it in, and notes for the user."""
    import yaml

    from evomerge.mergekit import from_mergekit

    try:
        text = path.read_text()
    except OSError as e:
        raise ConfigError(f"{path} cannot be read: {e.strerror}.") from e
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError:
        data = None  # from_mergekit says what is wrong, several documents included
    if isinstance(data, dict) and "format" in data:
        return Recipe.from_dict(data), "auto", ()
    imported = from_mergekit(text)
    return imported.recipe, imported.dtype, imported.notes


def _card(run: Run, trial: Trial) -> ModelCard:
    """Results of the trial on the split that was looked at last, beside the reference points."""
    split, scored = scored_last(run, trial)
    documents = (run.meta.get("documents") or {}).get(split, {})
    results = []
    for o in run.objectives:
        if scored.scores is None or o.name not in scored.scores.values:
            continue
        results.append(
            Result(
                task=o.task,
                metric=o.metric,
                value=o.sign * scored.scores.values[o.name],
                stderr=scored.scores.stderr.get(o.name),
                n=documents.get(o.name),
                split=split,
                higher_is_better=o.direction == "maximize",
                others={
                    t.label: o.sign * t.scores.values[o.name]
                    for t in run.complete(split)
                    if t.label and t.scores is not None and o.name in t.scores.values
                },
            )
        )
    stock = (run.meta.get("stock") or {}).get(split)
    return ModelCard(
        text=f"Found by evomerge: {trial.name} of a {run.meta.get('optimizer')} search over "
        f"{(run.meta.get('space') or {}).get('dim')} coefficients.",
        results=tuple(results),
        commands=(stock,) if isinstance(stock, str) else tuple(stock or ()),
        files=tuple(p for p in [run.path / f"samples-{split}.json"] if p.is_file()),
    )


def scored_last(run: Run, trial: Trial) -> tuple[Split, Trial]:
    """The trial as it was scored on test, else on select, else during the search."""
    splits: tuple[Split, ...] = ("test", "select")
    for split in splits:
        for t in run.complete(split):
            if t.number == trial.number:
                return split, t
    return "search", trial
