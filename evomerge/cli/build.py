"""Configuration -> the objects of a study, every mistake reported before anything expensive."""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import importlib.metadata
import inspect
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.cli.warm import warm_starts
from evomerge.database import check_url
from evomerge.errors import ConfigError, no_document_scores, unknown_name
from evomerge.run import Run
from evomerge.trial import SPLITS, Objective, Trial

if TYPE_CHECKING:
    from evomerge.budget import Budget
    from evomerge.evaluators.base import Evaluator
    from evomerge.experts import ExpertPool
    from evomerge.optimizers.base import Optimizer
    from evomerge.racing import Racing
    from evomerge.recipe import Recipe, Vector
    from evomerge.space import SearchSpace

Config = dict[str, Any]

# Settings that change what a search costs or shows, never what it finds.
NOT_SHAPING = (
    "n_trials", "n_finalists", "budget", "executor", "device", "score_cache", "storage", "tracker",
    "runs", "run_name", "run_dir", "hydra",
)  # fmt: skip
RACING_SETTINGS = ("error", "first", "growth", "tolerance")
MODEL_KEYS = ("name", "base", "experts", "tokenizer")
_RUNTIME = {"problem", "objectives", "spec", "folder", "meta"}


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What a search is made of, built and checked."""

    config: Config
    pool: ExpertPool
    space: SearchSpace
    evaluator: Evaluator
    optimizer: Optimizer
    references: list[tuple[str, Recipe, Vector | None]]
    meta: dict[str, Any]
    racing: Racing | None = None
    budget: Budget | None = None

    @property
    def axes(self) -> list[tuple[str, float, float]]:
        """(name, low, high) of every searched axis."""
        return [(a.name, a.low, a.high) for a in self.space.axes]

    def view(self, folder: Path, trials: Sequence[Trial]) -> Run:
        """The run as it stands in memory."""
        return Run(folder, self.evaluator.objectives, tuple(trials), (), self.meta)


def build_plan(config: Config) -> Plan:
    """Builds everything but the workers and the store.

    Args:
        config: The resolved configuration.

    Raises:
        EvomergeError: Whatever is wrong with it.
    """
    from evomerge.cli.export import expert_folder
    from evomerge.experts import ExpertPool
    from evomerge.gram import geometry
    from evomerge.optimizers.base import Problem
    from evomerge.space import SearchSpace
    from evomerge.study import reference_recipes

    seed = _integer(config, "seed", 0)
    _integer(config, "n_trials", 1)
    _integer(config, "n_finalists", 1)
    _check_device(str(config["device"]), str(config["dtype"]))
    if not isinstance(config["score_cache"], bool):
        raise ConfigError(f"score_cache: expected true or false, got {config['score_cache']!r}.")
    if config["storage"] is not None:
        check_url(config["storage"])
    objectives = parse_objectives(config.get("objective") or {})
    spec = space_spec(config)
    models = config.get("models") or {}
    for key in models:
        if key not in MODEL_KEYS:
            raise unknown_name("key of models", str(key), MODEL_KEYS)
    chosen = component_class("optimizer", config["optimizer"])  # a typo should not cost a hash
    component_class("executor", config["executor"])
    if config.get("tracker"):
        component_class("tracker", config["tracker"])
    experts = models.get("experts") or {}
    if isinstance(experts, Mapping):
        experts = {name: expert_folder(str(source)) for name, source in experts.items()}
    pool = ExpertPool.open(models.get("base"), experts, tokenizer=models.get("tokenizer"))
    space = SearchSpace(spec, pool)
    wants_geometry = getattr(chosen, "needs_geometry", False)
    problem = Problem(
        space.dim,
        seed,
        tuple(o for o in objectives if o.guides),
        space.start,
        str(config["scalarisation"]),
        geometry(pool, space) if wants_geometry else None,
    )
    optimizer: Optimizer = build_component("optimizer", config["optimizer"], problem=problem)
    evaluator = build_evaluator(config["evaluator"], objectives, pool)
    meta = _meta(config, pool, space, evaluator, pareto=optimizer.pareto)
    if getattr(optimizer, "needs_documents", False):
        _check_niches(objectives)
        _check_documents(meta["optimizer"], evaluator, [o for o in objectives if o.search])
    racing = build_racing(config, objectives, optimizer, evaluator)
    if racing is not None:
        meta["fingerprint"]["racing"] = [getattr(racing, name) for name in RACING_SETTINGS]
    warm = warm_starts(config.get("warm_start") or (), space, pool, pareto=optimizer.pareto)
    if warm:
        meta["warm_start"] = [{"label": label, "inside": x is not None} for label, _, x in warm]
        meta["fingerprint"]["warm_start"] = [recipe.id for _, recipe, _ in warm]
    references = [*reference_recipes(space, pool), *warm]
    budget = build_budget(config, evaluator, pareto=optimizer.pareto)
    return Plan(config, pool, space, evaluator, optimizer, references, meta, racing, budget)


def _integer(config: Config, key: str, low: int) -> int:
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{key}: expected an integer >= {low}, got {value!r}.")
    if value < low:
        raise ConfigError(f"{key}: expected at least {low}, got {value}.")
    return value


def _check_device(device: str, dtype: str) -> None:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+|:all)?", device):
        raise unknown_name("device", device, ("auto", "cpu", "cuda", "cuda:N", "cuda:all"))
    dtypes = ("auto", "float32", "bfloat16", "float16")
    if dtype not in dtypes:
        raise unknown_name("dtype", dtype, dtypes)


def parse_objectives(data: Mapping[str, Any]) -> tuple[Objective, ...]:
    """The ``objective`` section: name to {task, metric, filter, direction, weight, search}.

    Raises:
        ConfigError: None searched, or a value that makes no sense.
        UnknownNameError: An unknown key.
    """
    keys = [f.name for f in dataclasses.fields(Objective) if f.name != "name"]
    found = []
    for name, entry in data.items():
        if not isinstance(entry, Mapping) or "task" not in entry or "metric" not in entry:
            raise ConfigError(
                f"objective.{name}: expected {{task: NAME, metric: NAME, ...}}, got {entry!r}."
            )
        for key in entry:
            if key not in keys:
                raise unknown_name(f"key of objective.{name}", str(key), keys)
        weight = entry.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise ConfigError(f"objective.{name}.weight: expected a number >= 0, got {weight!r}.")
        if not isinstance(entry.get("search", True), bool):
            raise ConfigError(f"objective.{name}.search: expected true or false.")
        found.append(Objective(name=str(name), **entry))
    if not any(o.search for o in found):
        raise ConfigError(
            "no objective to search for; expected at least one entry below 'objective:', for "
            "example 'math: {task: gsm8k, metric: exact_match, filter: strict-match}'."
        )
    if not any(o.weight > 0 for o in found if o.search):
        raise ConfigError("every searched objective has weight 0; give at least one a weight > 0.")
    return tuple(found)


def space_spec(config: Config) -> Config:
    """The search space with ``space.*`` laid on top.

    Raises:
        UnknownNameError: No such space or file.
        ConfigError: Not a mapping.
    """
    from evomerge.space import load_space

    chosen = config.get("search_space")
    if isinstance(chosen, Mapping):
        spec = dict(chosen)
    elif isinstance(chosen, str):
        spec = load_space(chosen)
    else:
        raise ConfigError(
            f"search_space: expected a name, a YAML file or a mapping, got {chosen!r}."
        )
    above = config.get("space") or {}
    if not isinstance(above, Mapping):
        raise ConfigError(f"space: expected settings such as space.fixed.seed=1, got {above!r}.")
    return _overlay(spec, above)


def _overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> Config:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = _overlay(old, value) if both else value  # type: ignore[arg-type]
    return merged


def component_class(kind: str, config: Mapping[str, Any]) -> Any:
    """The class that ``_target_`` names, its settings checked by name.

    Raises:
        ConfigError: No ``_target_``, or one that cannot be imported.
        UnknownNameError: A setting that the class does not have.
    """
    target = (config or {}).get("_target_")
    if not isinstance(target, str):
        raise ConfigError(
            f"{kind}: expected a group option such as {kind}=NAME, or a mapping with _target_, "
            f"got {config!r}."
        )
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as e:
        raise ConfigError(f"{kind}._target_: {target!r} cannot be imported: {e}.") from e
    accepted = [n for n in inspect.signature(found).parameters if n not in _RUNTIME]
    for key in config:
        if key != "_target_" and key not in accepted:
            raise unknown_name(f"setting of {kind} {name}", str(key), accepted)
    return found


def build_component(kind: str, config: Mapping[str, Any], **runtime: Any) -> Any:
    """Builds what a group option describes, with the arguments that only the driver knows.

    Raises:
        EvomergeError: An unknown or invalid setting.
    """
    settings = {k: v for k, v in config.items() if k != "_target_"}
    try:
        return component_class(kind, config)(**runtime, **settings)
    except TypeError as e:
        raise ConfigError(f"{kind}: {e}. Settings given: {settings}.") from e


def _check_documents(who: str, evaluator: Evaluator, objectives: Sequence[Objective]) -> None:
    """Refuses corpus metrics by name, for what lives on a score per document."""
    corpus = getattr(evaluator, "corpus_metrics", ())
    for o in objectives:
        if o.name in corpus:
            raise no_document_scores(o.name, o.metric, who)


def _check_niches(objectives: Sequence[Objective]) -> None:
    """Refuses to share out what is read off the weights."""
    from evomerge.evaluators.weights import WEIGHTS

    for o in objectives:
        if o.search and o.task == WEIGHTS:
            raise ConfigError(
                f"objective {o.name!r}: {o.metric!r} is read off the weights and has no score per "
                "document, which this optimizer needs. Set 'search: false' (a bound still holds), "
                "or take another optimizer, such as nsga2."
            )


def build_racing(
    config: Config, objectives: Sequence[Objective], optimizer: Optimizer, evaluator: Evaluator
) -> Racing | None:
    """How candidates are raced; None where racing is off.

    Raises:
        ConfigError: A setting out of range, an optimizer that needs all documents, or an
            objective without a score per document.
        UnknownNameError: An unknown setting.
    """
    from evomerge.racing import Racing

    settings = dict(config.get("racing") or {})
    for key in settings:
        if key not in RACING_SETTINGS:
            raise unknown_name("setting of racing", str(key), RACING_SETTINGS)
    if not settings or settings.get("error") == 0:
        return None
    if getattr(optimizer, "needs_documents", False):
        name = str(config["optimizer"]["_target_"]).rsplit(".", 2)[-2]
        raise ConfigError(
            f"racing: {name} needs every candidate's score on every document, and racing stops "
            "candidates before. Set racing=off, or take another optimizer, such as cma_es."
        )
    guiding = tuple(o for o in objectives if o.guides)
    _check_documents("racing", evaluator, guiding)
    return Racing(guiding, optimizer.pareto, str(config["scalarisation"]), **settings)


def build_budget(config: Config, evaluator: Evaluator, *, pareto: bool) -> Budget | None:
    """What ends the search besides its number of trials; None where nothing does.

    Raises:
        ConfigError: A limit out of range.
        UnknownNameError: An unknown limit.
    """
    from evomerge.budget import Budget

    limits = {k: v for k, v in (config.get("budget") or {}).items() if v is not None}
    known = ("hours", "documents", "target", "patience")
    for key in limits:
        if key not in known:
            raise unknown_name("setting of budget", str(key), known)
    if not limits:
        return None
    counts = evaluator.documents("search")
    tasks = {o.task: counts.get(o.name, 0) for o in evaluator.objectives if o.guides}
    return Budget(
        evaluator.objectives,
        sum(tasks.values()),
        pareto=pareto,
        scalarisation=str(config["scalarisation"]),
        **limits,
    )


def build_evaluator(
    config: Mapping[str, Any], objectives: tuple[Objective, ...], pool: ExpertPool
) -> Evaluator:
    """The configured evaluator, beside what is read off the weights where that is asked for.

    Raises:
        EvomergeError: Whatever is wrong with it.
    """
    from evomerge.evaluators.together import Together
    from evomerge.evaluators.weights import WEIGHTS, Weights

    tasks = tuple(o for o in objectives if o.task != WEIGHTS)
    main: Evaluator = build_component("evaluator", config, objectives=tasks)
    if len(tasks) == len(objectives):
        return main
    weights = Weights([o for o in objectives if o.task == WEIGHTS], pool)
    return Together(main, [weights], objectives)


def _meta(
    config: Config, pool: ExpertPool, space: SearchSpace, evaluator: Evaluator, *, pareto: bool
) -> dict[str, Any]:
    optimizer = dict(config["optimizer"])
    models = [*([pool.base.ref] if pool.base else []), *pool.refs]
    return {
        "pareto": pareto,
        "optimizer": optimizer["_target_"].rsplit(".", 2)[-2],
        "seed": config["seed"],
        "scalarisation": config["scalarisation"],
        "n_trials": config["n_trials"],
        "space": {
            "name": str(config["search_space"])
            if isinstance(config["search_space"], str)
            else "own",
            "method": space.method,
            "dim": space.dim,
            "names": list(space.names),
            "groups": [g.group.name for g in space.groups],
        },
        "models": {
            "name": config["models"].get("name", "own"),
            "base": dataclasses.asdict(pool.base.ref) if pool.base else None,
            "experts": [dataclasses.asdict(r) for r in pool.refs],
            "tokenizer": pool.spelling,
            "n_parameters": pool.n_parameters,
        },
        "documents": {s: dict(evaluator.documents(s)) for s in SPLITS},
        "config": config,
        "fingerprint": {
            "models": [[m.name, m.content] for m in models],
            **({"tokenizer": pool.spelling} if pool.spelling else {}),
            "space": space.spec,
            "optimizer": optimizer,
            "evaluator": dict(evaluator.fingerprint()),
            "objectives": [dataclasses.asdict(o) for o in evaluator.objectives],
            "scalarisation": config["scalarisation"],
            "seed": config["seed"],
            "dtype": config["dtype"],
        },
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            **{
                name: importlib.metadata.version(name)
                for name in ("evomerge", "torch", "transformers", "lm_eval", "optuna")
            },
        },
    }
