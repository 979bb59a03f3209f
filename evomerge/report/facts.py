"""What a report says of a run and of a trial outside its tables."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from evomerge.report.data import printable, table_split
from evomerge.run import Run
from evomerge.trial import Trial, TrialState


def facts(run: Run) -> list[tuple[str, str]]:
    """The run in a few (name, value) pairs; those that it does not know are left out."""
    meta = run.meta
    space = meta.get("space") if isinstance(meta.get("space"), Mapping) else {}
    models = meta.get("models") if isinstance(meta.get("models"), Mapping) else {}
    found = [("search", progress(run))]
    if meta.get("optimizer"):
        seed = f", seed {meta['seed']}" if "seed" in meta else ""
        found.append(("optimizer", f"{printable(meta['optimizer'])}{seed}"))
    if meta.get("note"):
        found.append(("", printable(meta["note"])))
    if space:
        dim = f", {space['dim']} dimensions" if "dim" in space else ""
        found.append(("search space", f"{printable(space.get('name', space.get('method')))}{dim}"))
    if models:
        experts = [_model(m) for m in models.get("experts", ())]
        base = f" on {_model(models['base'])}" if models.get("base") else ""
        found.append(("experts", ", ".join(experts) + base))
    documents = meta.get("documents")
    if isinstance(documents, Mapping) and documents:
        parts = [f"{sum(d.values()):,} {s}" for s, d in documents.items() if d]
        found.append(("documents", ", ".join(parts)))
    return found


def progress(run: Run) -> str:
    """How far the search is, in words."""
    done = sum(t.kind == "search" and t.split == "search" for t in run.trials)
    budget = run.meta.get("n_trials")
    words = f"{done} of {budget} trials" if isinstance(budget, int) else f"{done} trials"
    ended = run.meta.get("ended") if isinstance(budget, int) and done < budget else ""
    words += f": {ended}" if ended else ""
    failed = sum(t.state is TrialState.FAILED for t in run.trials)
    pruned = sum(t.state is TrialState.PRUNED for t in run.trials)
    words += f", {len(run.running)} running" if run.running else ""
    words += f", {pruned} stopped early" if pruned else ""
    return words + (f", {failed} failed" if failed else "")


def commands(run: Run, trial: Trial) -> tuple[str, ...]:
    """The shell lines that export a trial and verify it with stock lm_eval."""
    return command_lines(run, str(trial.number))


def command_lines(run: Run, number: str) -> tuple[str, ...]:
    """:func:`commands` of the trial of that number, or of a word that stands for one."""
    out = f"merged/trial-{number}"
    path = shlex.quote(str(run.path))
    lines = [f"evomerge export {path} --pick trial={number} --out {out}"]
    line = run.stock_command(table_split(run), out)
    if line:
        lines.append(line)
    return tuple(lines)


def _model(ref: Any) -> str:
    return printable(ref.get("name", ref) if isinstance(ref, Mapping) else ref)
