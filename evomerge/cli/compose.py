"""``evomerge search``: Hydra composes the configuration, or those of a sweep."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from evomerge.cli.build import NOT_SHAPING
from evomerge.cli.search import run_one
from evomerge.errors import ConfigError, EvomergeError, unknown_name
from evomerge.resources import resource_folder

_USER_FILE = "evomerge_user_file"
# Sections whose keys are the user's own: setting a new one needs no "+" in front.
OPEN = (
    "space", "search_space", "objective", "models.experts", "evaluator.splits", "executor.paths",
)  # fmt: skip
# Hydra's options, and whether a value follows.
_OPTIONS = {
    "-m": False, "--multirun": False, "-h": False, "--help": False, "--hydra-help": False,
    "--version": False, "-c": True, "--cfg": True, "--resolve": False, "-p": True,
    "--package": True, "-i": True, "--info": True, "-cd": True, "--config-dir": True,
    "-sc": True, "--shell-completion": True,
}  # fmt: skip
_OPENED = (*(f"{section}." for section in OPEN), "space=", "executor.paths=")
GROUPS = ("models", "optimizer", "evaluator", "executor", "objective", "racing", "tracker")


def run_hydra(
    arguments: Sequence[str], *, dry: bool = False, extend: int | None = None, quiet: bool = False
) -> list[Path]:
    """Composes the configuration and runs one study, or one for every job of a sweep.

    Args:
        arguments: Hydra's arguments; a first one ending in ``.yaml`` is the user's file.
        dry: Score two reference points, say what the search will take, and stop.
        extend: This many more trials than the run has.
        quiet: No live view and no report on the terminal.

    Returns:
        The run folders of the studies that ran in this process.
    """
    import hydra

    rest, name = _arranged(arguments), "config"
    files = [a for a in rest if _is_file(a)]
    if len(files) > 1:
        raise ConfigError(f"expected one configuration file, got {' and '.join(files)}.")
    if files:
        rest.remove(files[0])
        name = _register(Path(files[0]))
    rest = [f"++{a}" if a.startswith(_OPENED) else a for a in rest]
    # a URL may hold "=", which Hydra takes in quotes only
    rest = [f"storage='{a[8:]}'" if a.startswith("storage=postgres") else a for a in rest]
    register_resolvers()
    job = Job(dry=dry, extend=extend, quiet=quiet)

    argv = sys.argv
    sys.argv = ["evomerge search", *rest]
    try:
        conf = str(resource_folder("conf"))
        hydra.main(version_base="1.3", config_path=conf, config_name=name)(job)()
    except SystemExit as e:  # Hydra's --help
        if e.code:
            raise
    except RuntimeError as e:
        if "Unknown plugin class" not in str(e):
            raise
        raise ConfigError("this launcher is an extra: pip install 'evomerge[sweeps]'.") from e
    finally:
        sys.argv = argv
    if job.mistakes:
        raise job.mistakes[0]
    return job.folders


class Job:
    """What Hydra runs: one study, or one of a sweep, in this process or in a launcher's.

    Args:
        dry: See :func:`run_hydra`.
        extend: See :func:`run_hydra`.
        quiet: See :func:`run_hydra`.

    Attributes:
        folders: Of the studies that ran in this process.
        mistakes: What the user got wrong, outside of sweeps.
    """

    def __init__(self, *, dry: bool, extend: int | None, quiet: bool) -> None:
        self.dry, self.extend, self.quiet = dry, extend, quiet
        self.folders: list[Path] = []
        self.mistakes: list[EvomergeError] = []
        self._sent = False

    def __reduce__(self) -> tuple[Any, ...]:
        return Job._arrive, (self.dry, self.extend, self.quiet)

    @staticmethod
    def _arrive(dry: bool, extend: int | None, quiet: bool) -> Job:
        """In a launcher's process, where Hydra composes the configuration before it calls us."""
        register_resolvers()
        job = Job(dry=dry, extend=extend, quiet=quiet)
        job._sent = True
        return job

    def __call__(self, config: DictConfig) -> str:
        """Runs the study; its folder."""
        hydra_config = HydraConfig.get()
        folder = Path(hydra_config.runtime.output_dir)
        name = folder.name if self._sent else ""
        settings: Any = {"dry": self.dry, "extend": self.extend, "quiet": self.quiet}
        try:
            self.folders.append(run_one(config, folder, name=name, **settings))
        except EvomergeError as e:
            if hydra_config.mode is not RunMode.RUN:
                raise  # a sweep goes on with its other jobs and raises the first error at its end
            with contextlib.suppress(OSError):
                folder.rmdir()  # made by Hydra, and still empty
            self.mistakes.append(e)  # out of Hydra's sight, which would print its own words first
        return str(folder)


def _is_file(argument: str) -> bool:
    return argument.endswith((".yaml", ".yml")) and "=" not in argument


def _arranged(arguments: Sequence[str]) -> list[str]:
    """Hydra wants its options before the overrides; users put them anywhere.

    Raises:
        ConfigError: An option that does not exist, or a word that is neither file nor key=value.
    """
    options, values, rest = [], [], list(arguments)
    while rest:
        word = rest.pop(0)
        if word.startswith("-"):
            option = word.partition("=")[0]
            if option not in _OPTIONS:
                hint = f" Settings are key=value: {option.lstrip('-')}=..." if rest else ""
                raise ConfigError(
                    f"unknown option {option!r}; known: --dry-run, --extend, --quiet, "
                    f"{', '.join(sorted(_OPTIONS))}.{hint}"
                )
            options.append(word)
            if _OPTIONS[option] and "=" not in word and rest:
                options.append(rest.pop(0))
        elif "=" in word or _is_file(word) or word.startswith("~"):
            values.append(word)
        else:
            raise ConfigError(f"{word!r} is neither FILE.yaml nor key=value.")
    return [*options, *values]


def register_resolvers() -> None:
    """Registers ``${zoo:SIZE}``, ``${config_hash:}`` and ``${run_folder:}``."""
    OmegaConf.register_new_resolver("zoo", _zoo, replace=True)
    OmegaConf.register_new_resolver("config_hash", _config_hash, replace=True)
    OmegaConf.register_new_resolver("run_folder", _run_folder, replace=True)


def _zoo(size: str) -> str:
    from evomerge.zoo import build_zoo

    return str(build_zoo(size=size))


def _config_hash(*, _root_: DictConfig) -> str:
    """Eight digits that differ whenever the search does; a larger budget keeps them."""
    shaping = {k: _root_._get_node(k) for k in _root_ if k not in NOT_SHAPING}
    plain: dict[str, Any] = {
        str(k): OmegaConf.to_container(v, resolve=False) if OmegaConf.is_config(v) else str(v)
        for k, v in shaping.items()
    }
    models = plain.get("models") or {}
    if not models.get("tokenizer"):
        models.pop("tokenizer", None)  # younger than many runs
    experts = models.get("experts") or {}
    plain["order"] = list(experts)  # of the columns; the rest may be written in any order
    text = json.dumps(plain, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _run_folder(*, _root_: DictConfig) -> str:
    return str(_root_.run_dir or f"{_root_.runs}/{_root_.run_name}")


def _register(path: Path) -> str:
    """Makes a user's YAML file a Hydra configuration on top of evomerge's defaults.

    A group's key may hold the name of an option (``optimizer: nsga2``) or settings that are laid
    over the default option.
    """
    try:
        data = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file.") from None
    except yaml.YAMLError as e:
        raise ConfigError(f"{path} is not valid YAML: {e}") from e
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds no mapping; expected models, objective, ...")
    defaults: list[Any] = data.pop("defaults", ["own"])
    if data.get("racing") is False:
        data["racing"] = "off"  # as YAML reads off
    chosen = [g for g in GROUPS if isinstance(data.get(g), str)]
    defaults.extend({f"override {group}": data.pop(group)} for group in chosen)
    known = set(yaml.safe_load((resource_folder("conf") / "own.yaml").read_text())) | {*GROUPS}
    for key in data:
        if key not in known:
            raise unknown_name(f"key in {path}", str(key), known - {"defaults"})
    data["models"] = {"name": path.stem, **(data.get("models") or {})}
    if "_self_" not in defaults:
        defaults.append("_self_")
    ConfigStore.instance().store(name=_USER_FILE, node={"defaults": defaults, **data})
    return _USER_FILE
