"""``evomerge doctor``: can these be merged, what to expect, where to start."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from evomerge.errors import ConfigError, ExportError


def doctor(options: argparse.Namespace) -> int:
    """Examines the models and prints what it found.

    Returns:
        0 where every model can be merged as it is, 2 where one cannot.
    """
    import json

    from rich.console import Console

    from evomerge.cli.export import expert_folder
    from evomerge.diagnose import diagnose
    from evomerge.report.doctor import show_diagnosis
    from evomerge.report.doctor_picture import write_picture

    experts = {n: expert_folder(s) for n, s in named_experts(options.models).items()}
    if options.picture and options.picture.suffix.lower() != ".svg":
        raise ConfigError(f"--picture: expected a file that ends in .svg, got {options.picture}.")
    with Console(stderr=True).status("reading the models") as status:
        found = diagnose(options.base, experts, status.update)
    if options.json == Path("-"):
        print(json.dumps(found.to_json(), allow_nan=False))
    else:
        show_diagnosis(found)
    wrote = []
    if options.json and options.json != Path("-"):
        try:
            options.json.write_text(json.dumps(found.to_json(), allow_nan=False, indent=1) + "\n")
        except OSError as e:
            raise ExportError(f"{options.json} cannot be written: {e.strerror}.") from e
        wrote.append(options.json)
    if options.picture:
        write_picture(found, options.picture)
        wrote.append(options.picture)
    if options.json != Path("-"):
        print("".join(f"wrote {path}\n" for path in wrote), end="")
    return 2 if found.blocked else 0


def named_experts(models: Sequence[str]) -> dict[str, str]:
    """Expert name to source, from ``NAME=SOURCE`` or from the last part of a source.

    Names that were taken (``base`` is) get a number.
    """
    from evomerge.mergekit.config import name_models

    labels, sources = [], []
    for model in models:
        match = None if Path(model).exists() else re.fullmatch(r"([\w-]+)=(.+)", model)
        labels.append(match.group(1) if match else model)
        sources.append(match.group(2) if match else model)
    return dict(zip(name_models(labels), sources, strict=True))
