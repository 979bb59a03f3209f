"""The model card of an export: front matter for the hub, results, and how to reproduce it."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from evomerge.recipe import ModelRef, Recipe


@dataclasses.dataclass(frozen=True)
class Result:
    """One row of the results table: one metric of one task, in its own direction and units.

    Attributes:
        task: lm-eval's name of the task.
        metric: ``"acc"``, ``"exact_match"``, ...
        value: Raw value of the exported merge.
        stderr: Its standard error, or None.
        n: Documents that it was measured on, or None.
        split: Which documents: ``search``, ``select`` or ``test``.
        higher_is_better: Direction of the raw value.
        others: Raw values of other models on the same documents: ``{"base": 0.31}``.
    """

    task: str
    metric: str
    value: float
    stderr: float | None = None
    n: int | None = None
    split: str = "test"
    higher_is_better: bool = True
    others: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """What a card says beyond the recipe.

    Attributes:
        title: Heading; the folder's name when empty.
        text: A paragraph of Markdown below the heading.
        results: Rows of the results table.
        commands: Command lines that measure the results again with the stock harness;
            ``{model}`` stands for the checkpoint.
        license: SPDX or hub identifier; left out when empty.
        files: What the commands read: copied beside the card, and named there without folder.
    """

    title: str = ""
    text: str = ""
    results: tuple[Result, ...] = ()
    commands: tuple[str, ...] = ()
    license: str = ""
    files: tuple[Path, ...] = ()


def published(recipe: Recipe) -> Recipe:
    """The recipe as strangers may see it: of a local folder its name only; hub ids stay.

    Models are known by the sha256 of their weights, so the recipe keeps its id.
    """

    def place(ref: ModelRef) -> ModelRef:
        if _is_hub_id(ref.path):
            return ref
        return dataclasses.replace(ref, path=Path(ref.path).expanduser().name or ref.name)

    return dataclasses.replace(
        recipe,
        models=tuple(map(place, recipe.models)),
        base=place(recipe.base) if recipe.base else None,
    )


def render_card(
    recipe: Recipe,
    card: ModelCard,
    name: str,
    mergekit_note: str = "",
    rounded: str = "",
    *,
    dtype: str = "auto",
) -> str:
    """README.md of an export.

    Args:
        recipe: What was merged.
        card: What else to say.
        name: The folder's name.
        mergekit_note: Why there is no ``mergekit.yaml``; empty where there is one.
        rounded: What rounding left of the merge; empty where there is nothing to say.
        dtype: What the weights were written in; ``"auto"``: as the base.

    Returns:
        Markdown with YAML front matter. A card is published, so of every local folder it holds
        the name only.
    """
    recipe = published(recipe)
    title = card.title or name
    front = yaml.safe_dump(_front_matter(recipe, card, title), sort_keys=False, allow_unicode=True)
    parts = [f"---\n{front}---\n", f"# {_line(title)}\n"]
    if card.text:
        parts.append(card.text.rstrip() + "\n")
    parts.append(_merge_section(recipe))
    if rounded:
        parts.append(rounded + "\n")
    if card.results:
        parts.append(_results_section(card))
    parts.append(_reproduce_section(card, mergekit_note, dtype))
    parts.append(f"## Recipe\n\n```yaml\n{recipe.to_yaml()}```\n")
    return "\n".join(parts)


def _front_matter(recipe: Recipe, card: ModelCard, title: str) -> dict[str, Any]:
    refs = [*([recipe.base] if recipe.base else []), *recipe.models]
    # The hub refuses a base_model that is not an id of its own, so local folders stay out.
    ids = [r.path.split("@")[0] for r in refs if _is_hub_id(r.path)]
    data: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if card.license:
        data["license"] = card.license
    if ids:
        data["base_model"] = ids
        data["base_model_relation"] = "merge"
    data["tags"] = ["merge", "evomerge"]
    if card.results:
        results = [
            {
                "task": {"type": "text-generation"},
                "dataset": {"type": r.task, "name": f"{r.task} ({r.split} documents)"},
                "metrics": [{"type": r.metric, "value": float(r.value)}],
            }
            for r in card.results
        ]
        data["model-index"] = [{"name": title, "results": results}]
    return data


def _is_hub_id(path: str) -> bool:
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@\S+)?", path)) and not Path(path).is_dir()


def _merge_section(recipe: Recipe) -> str:
    lines = [
        "## What was merged\n",
        f"evomerge, method `{recipe.method}`, {len(recipe.groups)} layer groups.\n",
        "| model | source | sha256 of the weights |",
        "|---|---|---|",
    ]
    for role, ref in [("base", recipe.base), *((m.name, m) for m in recipe.models)]:
        if ref:
            lines.append(
                f"| {_cell(role)} | `{_cell(ref.path)}` | `{ref.content[:16] or 'unknown'}` |"
            )
    return "\n".join(lines) + "\n"


def _results_section(card: ModelCard) -> str:
    others = list(dict.fromkeys(name for r in card.results for name in r.others))
    head = ["task", "metric", "better", "this merge", *others, "documents"]
    lines = ["## Results\n", f"| {' | '.join(map(_cell, head))} |", "|" + "---|" * len(head)]
    for r in card.results:
        value = f"**{r.value:.4g}**" + (f" ± {r.stderr:.2g}" if r.stderr is not None else "")
        cells = [r.task, r.metric, "higher" if r.higher_is_better else "lower", value]
        cells += [f"{r.others[o]:.4g}" if o in r.others else "" for o in others]
        cells.append(f"{r.n} ({r.split})" if r.n is not None else r.split)
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines) + "\n"


def _reproduce_section(card: ModelCard, mergekit_note: str, dtype: str) -> str:
    written = "" if dtype == "auto" else f" --dtype {dtype}"
    commands = [f"evomerge merge recipe.yaml --out MERGED{written}"]
    if not mergekit_note:
        commands.append("mergekit-yaml mergekit.yaml MERGED   # the same with mergekit")
    commands += [_portable(c).replace("{model}", "MERGED") for c in card.commands]
    text = "## How to reproduce\n\n```sh\n" + "\n".join(commands) + "\n```\n"
    if mergekit_note:
        text += f"\nThere is no `mergekit.yaml`: {_line(mergekit_note)}\n"
    return text


def _portable(command: str) -> str:
    """A command line without the folders of this machine: of an absolute path its last part."""

    def name(match: re.Match[str]) -> str:
        return match.group(1) + Path(match.group(2)).name

    lines = command.split("\n")
    return "\n".join(
        shlex.join(re.sub(r"""(^|[=,"])(~?/[^,"]*)""", name, word) for word in shlex.split(line))
        for line in lines
    )


def _line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")
