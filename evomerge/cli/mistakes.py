"""What Hydra's errors mean to a user: which key or option is unknown, and what was meant."""

from __future__ import annotations

import re
from collections.abc import Sequence

from evomerge.errors import unknown_name


def hydra_mistake(error: Exception, arguments: Sequence[str] = ()) -> str | None:
    """One line for an error of Hydra or OmegaConf that a user made; None for anything else.

    Args:
        error: What was raised.
        arguments: The command line, which says whose settings to name.
    """
    try:
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException
    except ImportError:
        return None
    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        return None
    from evomerge.resources import resource_folder

    text = str(error).strip()
    asked = text.splitlines()[0] if text else type(error).__name__
    override = re.search(r"Could not override '([^']+)'", asked)
    if override:
        *parents, key = override.group(1).split(".")
        keys = _keys(parents, arguments)
        if keys and key not in keys:
            where = "setting" + (f" of {'.'.join(parents)}" if parents else "")
            return str(unknown_name(where, key, keys))
    words = asked.replace("'", " ").replace('"', " ").split()
    conf = resource_folder("conf")
    groups = (p.relative_to(conf).as_posix() for p in conf.rglob("*") if any(p.glob("*.yaml")))
    for group in sorted(groups):
        wanted = next(
            (w.removeprefix(f"{group}/") for w in words if w.startswith(f"{group}/")), ""
        )
        if wanted:
            known = [p.stem for p in (conf / group).glob("*.yaml")]
            return str(unknown_name(f"{group} option", wanted.rstrip("."), known))
    detail = " ".join(line.strip() for line in text.splitlines()[1:3])
    return f"{asked} {detail}".strip()


def _keys(parents: Sequence[str], arguments: Sequence[str]) -> set[str]:
    """Keys that the configuration has below ``parents`` (at most one deep).

    Below a group they are those of its options on the command line, or of all where it has none.
    """
    import yaml

    from evomerge.resources import resource_folder

    conf = resource_folder("conf")
    plain = yaml.safe_load((conf / "own.yaml").read_text())
    if not parents:
        return {*plain, *(p.name for p in conf.iterdir() if p.is_dir())} - {"defaults", "hydra"}
    if len(parents) > 1:
        return set()
    group = parents[0]
    if isinstance(plain.get(group), dict):
        return set(plain[group])
    chosen = {
        n for a in arguments if a.startswith(f"{group}=") for n in a[len(group) + 1 :].split(",")
    }
    files = list((conf / group).glob("*.yaml"))
    files = [f for f in files if f.stem in chosen] or files
    return {k for f in files for k in (yaml.safe_load(f.read_text()) or {}) if k != "_target_"}
