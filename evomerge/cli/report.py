"""`evomerge report`: one run in full, or many side by side."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from evomerge.errors import ConfigError
from evomerge.run import Run
from evomerge.store import open_run
from evomerge.verdict import verdict


def report_one(folder: Path, options: argparse.Namespace) -> None:
    """Prints one run and writes what was asked for.

    Raises:
        EvomergeError: No run there, or a file that cannot be written.
    """
    from evomerge.report.against import against
    from evomerge.report.as_json import to_json, write_json
    from evomerge.report.page import write_html
    from evomerge.report.picture import write_png
    from evomerge.report.terminal import show

    found = open_run(folder)
    if options.against:
        found = against(found, open_run(options.against))
    if options.json == Path("-"):
        print(json.dumps(to_json(found), allow_nan=False))
        return
    if options.brief:
        _print_verdict(found)
    else:
        show(found)
    for path, write in (
        (options.html, write_html),
        (options.png, write_png),
        (options.json, write_json),
    ):
        if path:
            write(found, path)
            print(f"wrote {path}")


def report_many(folders: Sequence[Path], options: argparse.Namespace) -> None:
    """Prints many runs side by side and writes what was asked for.

    Raises:
        EvomergeError: Runs that cannot be compared, or options that make no sense for many.
    """
    from rich.console import Console

    from evomerge.report import many_page
    from evomerge.report.many import compare
    from evomerge.report.many_tables import to_json
    from evomerge.report.terminal import WIDTH

    if options.png or options.against:
        raise ConfigError("--png and --against take one run; give one run folder.")
    runs = [open_run(folder) for folder in folders]
    if options.brief:
        for run in runs:
            print(f"{run.path}: ", end="")
            _print_verdict(run)
        return
    comparison = compare(runs)
    if options.json == Path("-"):
        print(json.dumps(to_json(comparison), allow_nan=False))
        return
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    many_page.show(comparison, console)
    if options.html:
        many_page.write_html(comparison, options.html)
        print(f"wrote {options.html}")
    if options.json:
        many_page.write_json(comparison, options.json)
        print(f"wrote {options.json}")


def _print_verdict(run: Run) -> None:
    answer = verdict(run)
    print(f"{answer.headline}\n{answer.sentence}")
