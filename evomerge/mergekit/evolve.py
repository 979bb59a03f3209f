"""A mergekit-evolve configuration -> the configuration of a search of ours.

mergekit-evolve 0.1.5 searches unbounded weights and takes their absolute value afterwards; here
the bounds are part of the search space. Its score is the weighted sum of raw metrics; here every
task is an objective of its own. What cannot be carried over is refused by name or told in
``notes``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import ConfigError, unknown_name
from evomerge.mergekit.config import model_source, name_models, tokenizer_of
from evomerge.mergekit.table import METHODS
from evomerge.methods import method

_KEYS = (
    "genome", "tasks", "limit", "num_fewshot", "shuffle", "random_init", "random_seed",
    "apply_chat_template", "fewshot_as_multiturn",
)  # fmt: skip
_GENOME = (
    "models", "merge_method", "base_model", "tokenizer_source", "layer_granularity", "normalize",
    "allow_negative_weights", "filters", "smooth",
)  # fmt: skip
_SEARCHED = ("linear", "task_arithmetic", "ties", "dare_ties", "slerp")
_NORMALISED = ("linear", "ties", "dare_ties")
"""Methods whose weights mergekit-evolve normalises unless it is told not to."""
# Filters that select exactly one of our roles in every architecture that both programs know.
_ROLE_OF_FILTER = {
    "self_attn": "attention", "attn": "attention", "mlp": "mlp", "feed_forward": "mlp",
    "embed_tokens": "embedding", "wte": "embedding", "lm_head": "head",
}  # fmt: skip


def count_layers(source: str) -> int | None:
    """Number of layers by ``config.json`` of a folder or hub id; None where it cannot be had."""
    path = Path(source).expanduser() / "config.json"
    try:
        if not path.is_file():
            from huggingface_hub import hf_hub_download

            repo, _, revision = source.partition("@")
            path = Path(hf_hub_download(repo, "config.json", revision=revision or None))
        config = json.loads(path.read_text())
    except Exception:  # noqa: BLE001 - the hub raises a dozen kinds of error; not knowing is fine
        return None
    config = config.get("text_config") or config
    n = config.get("num_hidden_layers", config.get("n_layer"))
    return int(n) if n is not None else None


def import_evolve(
    text: str, layers_of: Callable[[str], int | None] = count_layers
) -> dict[str, Any]:
    """Translates a mergekit-evolve configuration.

    Args:
        text: Its YAML (``genome``, ``tasks``, ...).
        layers_of: Number of layers of a model, asked only where ``layer_granularity`` needs it.

    Returns:
        Plain data with the keys ``models``, ``objectives``, ``evaluator``, ``search_space``,
        ``seed`` (None where the file names none) and ``notes``.

    Raises:
        ConfigError: Not such a file, or something that evomerge has no counterpart for.
        UnknownNameError: An unknown key, or a merge method that evomerge lacks.
    """
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise ConfigError(f"not valid YAML: {e}") from e
    if not isinstance(data, dict) or not isinstance(data.get("genome"), dict):
        raise ConfigError(
            "expected a mergekit-evolve configuration with a 'genome' mapping; a plain mergekit "
            "configuration is merged with `evomerge merge`."
        )
    genome: dict[str, Any] = data["genome"]
    for mapping, known in ((data, _KEYS), (genome, _GENOME)):
        for key in mapping:
            if key not in known:
                raise unknown_name("key of a mergekit-evolve configuration", str(key), known)
    notes: list[str] = []
    name = str(genome.get("merge_method"))
    searched = [m for m in _SEARCHED if m in METHODS]
    if name not in searched:
        raise unknown_name(
            "merge method", name, searched, "mergekit-evolve or evomerge cannot search it."
        )
    base, experts = _models(genome, name, notes)
    named = name_models(experts)
    origin = model_source(genome["base_model"]) if genome.get("base_model") else None
    everyone = {**({"base": base} if base else {}), **named}
    tokenizer = tokenizer_of(genome, origin, everyone, notes)
    return {
        "models": {
            "name": Path((base or experts[0]).split("@")[0]).name,
            "base": base,
            "experts": named,
            **({"tokenizer": tokenizer} if tokenizer else {}),
        },
        "objectives": _objectives(data.get("tasks"), notes),
        "evaluator": _evaluator(data, notes),
        "search_space": _space(genome, name, [base or experts[0], *experts], layers_of, notes),
        "seed": data.get("random_seed"),
        "notes": notes,
    }


def _models(
    genome: Mapping[str, Any], name: str, notes: list[str]
) -> tuple[str | None, list[str]]:
    given = genome.get("models")
    if not isinstance(given, list) or not given:
        raise ConfigError("genome.models must be a list of models.")
    models = list(dict.fromkeys(model_source(m) for m in given))
    if len(models) != len(given):
        raise ConfigError("genome.models lists a model twice.")
    base = model_source(genome["base_model"]) if genome.get("base_model") else None
    if name == "slerp":
        if base not in {None, *models}:
            models.append(str(base))
        if len(models) != 2:
            raise ConfigError(
                f"genome: slerp of {len(models)} models, of which mergekit-evolve picks the two "
                "with the largest weights, has no counterpart; name two, or take multislerp."
            )
        return None, models
    if base in models:
        models.remove(base)
        if METHODS[name].base == "origin":
            notes.append("base_model among the models has no task vector; it is no expert here.")
        else:  # averaged like any other; first, since the first gives the configuration
            models.insert(0, base)
            base = None
    if not models:
        raise ConfigError("genome.models holds no model beside base_model.")
    if METHODS[name].base == "origin" and base is None:
        raise ConfigError(f"genome.base_model is missing; {name} needs it.")
    return base, models


def _objectives(tasks: Any, notes: list[str]) -> list[dict[str, Any]]:
    if not isinstance(tasks, list) or not tasks:
        raise ConfigError("'tasks' must be a list of lm-eval tasks.")
    found: list[dict[str, Any]] = []
    for raw in tasks:
        entry = {"name": raw} if isinstance(raw, str) else raw
        if not isinstance(entry, Mapping) or "name" not in entry:
            raise ConfigError(f"a task is a name or {{name, weight, metric}}, got {raw!r}.")
        for key in entry:
            if key not in {"name", "weight", "metric"}:
                raise unknown_name("key of a task", str(key), ("name", "weight", "metric"))
        task = str(entry["name"])
        metric, _, filtered = str(entry.get("metric", "acc,none")).partition(",")
        weight = float(entry.get("weight", 1.0))
        name, n = task, 2
        while name in {o["name"] for o in found}:
            name, n = (f"{task}_{metric}" if n == 2 else f"{task}_{metric}_{n - 1}"), n + 1
        found.append(
            {
                "name": name,
                "task": task,
                "metric": metric,
                "filter": filtered or "none",
                "direction": "minimize" if weight < 0 else "maximize",
                "weight": abs(weight),
            }
        )
    if any(o["direction"] == "minimize" for o in found):
        notes.append("A negative task weight became direction: minimize with a positive weight.")
    if len(found) > 1:
        notes.append(
            "mergekit-evolve adds raw metrics by weight; evomerge keeps one objective per task "
            "and normalises them before it weighs them."
        )
    return found


def _evaluator(data: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    chat = bool(data.get("apply_chat_template", True))
    found: dict[str, Any] = {
        "num_fewshot": data.get("num_fewshot"),
        "apply_chat_template": chat,
        "fewshot_as_multiturn": chat and bool(data.get("fewshot_as_multiturn", True)),
    }
    if chat:
        notes.append(
            "apply_chat_template is on, which is mergekit-evolve's default; set "
            "evaluator.apply_chat_template=false for models without a chat template."
        )
    if data.get("limit") is not None:
        found["splits"] = {"search": int(data["limit"])}
        notes.append(
            "limit became the number of documents of the search split; they are chosen by hash, "
            "not the first ones, and other documents remain for select and test."
        )
    if data.get("shuffle"):
        notes.append(
            "shuffle is left out: documents are dealt to splits by hash once, so that every "
            "candidate is asked the same."
        )
    if data.get("random_init"):
        notes.append("random_init is left out: a search starts at the default point of its space.")
    return found


def _space(
    genome: Mapping[str, Any],
    name: str,
    models: Sequence[str],
    layers_of: Callable[[str], int | None],
    notes: list[str],
) -> dict[str, Any]:
    """The search space; ``models`` are the experts with the anchor's source in front."""
    source, *experts = models
    if name == "slerp":
        return _slerp_space(genome, _n_blocks(genome, source, layers_of), notes)
    normalize = genome.get("normalize")
    if name == "task_arithmetic" and normalize:
        # base + sum w (W - base) / sum w is the average of the experts by w.
        name = "linear"
        notes.append("Normalised task arithmetic is a weighted average, so the method is linear.")
    normalize = name in _NORMALISED if normalize is None else bool(normalize)
    bounds = method(name).parameters["weight"]
    start = 1 / len(experts)
    high = max(bounds.high, start)
    weight: dict[str, Any] = {
        "low": -high if genome.get("allow_negative_weights") else 0.0,
        "high": high,
        "default": start,
        "per": ["group", "expert"],
    }
    notes.append(
        "mergekit-evolve's weights have no bounds; here they lie in "
        f"[{weight['low']:g}, {high:g}]."
    )
    blocks = _n_blocks(genome, source, layers_of)
    smooth = bool(genome.get("smooth")) and blocks[0] > 1
    groups = _groups(genome.get("filters") or [], blocks, smooth=smooth)
    if smooth:
        weight["knots"] = blocks[0]
        notes.append(
            "smooth: weights are interpolated over depth; final norm and head take the last "
            "value, where mergekit gives them the first."
        )
    parameters = {"weight": weight}
    if "density" in method(name).parameters:  # starts at 1, as there
        density = {"low": method(name).parameters["density"].low, "high": 1.0, "default": 1.0}
        parameters["density"] = weight | density
    space: dict[str, Any] = {"method": name, "groups": groups, "parameters": parameters}
    if "normalize" in method(name).fixed:
        space["fixed"] = {"normalize": normalize}
    return space


def _slerp_space(
    genome: Mapping[str, Any], blocks: tuple[int, int], notes: list[str]
) -> dict[str, Any]:
    if genome.get("filters") or genome.get("smooth"):
        raise ConfigError("genome: slerp takes neither filters nor smooth, as in mergekit-evolve.")
    notes.append(
        "mergekit-evolve turns the weights of the two models into t by a softmax; here t itself "
        "is searched."
    )
    t = method("slerp").parameters["t"]
    return {
        "method": "slerp",
        "groups": _groups([], blocks, smooth=False),
        "parameters": {
            "t": {"low": t.low, "high": t.high, "default": t.default, "per": ["group"]}
        },
    }


def _n_blocks(
    genome: Mapping[str, Any], source: str, layers_of: Callable[[str], int | None]
) -> tuple[int, int]:
    """Number of blocks and layers per block; (1, 0) for one set of weights for all layers."""
    size = genome.get("layer_granularity") or 0
    if not isinstance(size, int) or isinstance(size, bool):
        raise ConfigError(f"genome.layer_granularity must be a whole number, got {size!r}.")
    if size < 1:
        return 1, 0
    n_layers = layers_of(source)
    if n_layers is None:
        raise ConfigError(
            f"layer_granularity: {size} needs the number of layers, and config.json of {source!r} "
            "could not be read; download the model first."
        )
    if n_layers % size:
        raise ConfigError(
            f"genome.layer_granularity {size} does not divide the {n_layers} layers of {source!r}."
        )
    return n_layers // size, size


def _groups(filters: Any, blocks: tuple[int, int], *, smooth: bool) -> dict[str, Any]:
    n, size = blocks
    if not isinstance(filters, list) or not all(isinstance(f, str) and f for f in filters):
        raise ConfigError(f"genome.filters must be a list of texts, got {filters!r}.")
    groups: dict[str, Any] = {"blocks": "all" if n == 1 else n, "roles": "joined"}
    if smooth or (n > 1 and size == 1):
        groups["blocks"] = "each"
    groups["outside"] = "nearest"
    roles: dict[str, list[str]] = {}
    for f in filters:
        role = _ROLE_OF_FILTER.get(f)
        if role and not any(role in taken for taken in roles.values()):
            roles[f] = [role]
    if len(roles) == len(filters):
        if roles:
            groups["roles"] = roles
        return groups
    if smooth:
        raise ConfigError(
            f"genome.smooth with filters {filters} has no counterpart; filters that name a role "
            f"({', '.join(_ROLE_OF_FILTER)}) work."
        )
    if n == 1:
        groups["custom"] = {f: re.escape(f) for f in filters}
        return groups
    custom = {}
    for i in range(n):
        layers = "|".join(map(str, range(i * size, (i + 1) * size)))
        span = f"{i * size}-{(i + 1) * size - 1}" if size > 1 else str(i)
        for f in filters:
            custom[f"layers.{span}.{f}"] = rf"\.({layers})\..*{re.escape(f)}"
    groups["custom"] = custom
    return groups
