"""Every subcommand; ``search`` hands its arguments to Hydra, the rest are argparse."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge import __version__
from evomerge.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from evomerge.cli.verify import Check

COMMANDS = {
    "search": "search the coefficients of a merge",
    "report": "show a run: text, HTML, JSON, PNG",
    "export": "write a trial of a run as a checkpoint",
    "merge": "write a recipe (or a mergekit YAML) as a checkpoint",
    "import": "turn a mergekit-evolve YAML into a search of ours",
    "doctor": "tell whether models can be merged, what to expect and where to start",
    "zoo": "build the embedded default models and tasks",
    "list": "list methods, optimizers, spaces or tasks",
}
LISTS = ("methods", "optimizers", "spaces", "tasks")
PICKING = """\
--pick WHICH is one of
  best                    the highest score on the select documents (the default)
  knee                    the best trade-off of the Pareto front
  weights=math:2,code:1   the front's highest weighted sum of normalised scores
  math>=95%,code          bounds first, then the best on what is left: at least 95% of the best
                          math expert, and of those merges the best on code. Bounds are
                          OBJECTIVE>=P% (normalised), or OBJECTIVE>=V and OBJECTIVE<=V in the
                          objective's own units; goals are OBJECTIVE or OBJECTIVE:WEIGHT. Without
                          a goal: the best by the search's own measure. Quote it: > is the shell's.
  trial=17                that one
"""


def run(arguments: Sequence[str]) -> int:
    """Runs one command.

    Raises:
        EvomergeError: Whatever is wrong; :func:`evomerge.cli.main` prints it.
    """
    first = arguments[0] if arguments else "--help"
    rest = list(arguments[1:])
    if first in {"-sc", "--shell-completion"}:
        return _complete(list(arguments))
    if first in {"-h", "--help", "help"}:
        print(_usage())
        return 0
    if first == "--version":
        print(f"evomerge {__version__}")
        return 0
    if first not in COMMANDS:
        raise unknown_name("command", first, COMMANDS, "See `evomerge --help`.")
    if first == "search":
        return _search(rest)
    handler = {
        "report": _report,
        "export": _export,
        "merge": _merge,
        "import": _import,
        "doctor": _doctor,
        "zoo": _zoo,
        "list": _list,
    }[first]
    return handler(rest)


def _usage() -> str:
    lines = ["usage: evomerge COMMAND ...", ""]
    lines += [f"  {name:<8} {text}" for name, text in COMMANDS.items()]
    lines += [
        "",
        "`evomerge COMMAND --help` tells more. The shortest start is `evomerge search`, which",
        "searches a merge of small models that evomerge builds itself.",
        'Tab completion: eval "$(evomerge -sc install=bash)"',
    ]
    return "\n".join(lines)


def _search(rest: list[str]) -> int:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a script started it with &
        signal.signal(signal.SIGINT, signal.default_int_handler)  # kill -INT stops it all the same
    from evomerge.cli.compose import run_hydra

    dry = _take_flag(rest, "--dry-run")
    quiet = _take_flag(rest, "--quiet")
    extend = None
    if "--extend" in rest:
        at = rest.index("--extend")
        try:
            extend = int(rest[at + 1])
        except (IndexError, ValueError):
            raise ConfigError(
                "--extend: expected a number of trials, as in --extend 20."
            ) from None
        if extend < 1:
            raise ConfigError(f"--extend: expected at least 1, got {extend}.")
        del rest[at : at + 2]
    run_hydra(rest, dry=dry, extend=extend, quiet=quiet)
    return 0


def _take_flag(rest: list[str], flag: str) -> bool:
    if flag in rest:
        rest.remove(flag)
        return True
    return False


def _complete(arguments: list[str]) -> int:
    """Tab completion: our commands for the first word, Hydra's for those of ``search``."""
    line = os.environ.get("COMP_LINE", "")
    query = any(a.startswith("query=") for a in arguments)
    if query:
        words = line.split()
        if len(words) < 2 or (len(words) == 2 and not line.endswith(" ")):
            print(" ".join(COMMANDS))
            return 0
        if words[1] != "search":
            if words[1] == "list":
                print(" ".join(LISTS))
            return 0
        last = words[-1] if not line.endswith(" ") else ""
        if last.startswith("search_space="):
            from evomerge.space import known_spaces

            print(" ".join(f"search_space={name}" for name in sorted(known_spaces())))
            return 0
        kept = [w for w in words[2:] if "=" in w or w == last]
        kept = [w for w in kept if not w.startswith("-") and not w.endswith((".yaml", ".yml"))]
        tail = " " if line.endswith(" ") else ""
        os.environ["COMP_LINE"] = " ".join(["evomerge", *kept]) + (tail if kept else " ")
    from evomerge.cli.compose import run_hydra

    sys.argv[0] = "evomerge"
    try:
        run_hydra(arguments)
    except Exception:
        if not query:
            raise  # a half-typed line is no reason to print into somebody's terminal
    return 0


def _parser(name: str, **kwargs: Any) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(f"evomerge {name}", description=COMMANDS[name], **kwargs)


def _report(rest: list[str]) -> int:
    parser = _parser("report")
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", type=Path, help="run folders, or folders of a sweep"
    )
    parser.add_argument("--html", type=Path, help="write one self-contained page")
    parser.add_argument("--json", type=Path, help="write the same facts as JSON ('-': stdout)")
    parser.add_argument("--png", type=Path, help="write the front as a picture (one run only)")
    parser.add_argument(
        "--against", type=Path, metavar="RUN", help="also compare with another run (one run only)"
    )
    parser.add_argument("--brief", action="store_true", help="print the verdict of each run only")
    options = parser.parse_args(rest)
    from evomerge.cli.report import report_many, report_one
    from evomerge.report.many import run_folders

    folders = run_folders(options.runs)
    if len(folders) == 1:
        report_one(folders[0], options)
    else:
        report_many(folders, options)
    return 0


def _export(rest: list[str]) -> int:
    parser = _parser(
        "export",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=PICKING + "\nExit code 1: --verify found other scores than the trial's.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder, finished or live")
    parser.add_argument("--pick", default="best", metavar="WHICH", help="see below; default best")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    _add_write_options(parser, "score what was written on the documents of the card and compare")
    options = parser.parse_args(rest)
    from evomerge.cli.export import export_trial

    write, verify = _write_options(options), options.verify
    lines, check = export_trial(options.run, options.pick, options.out, write, verify=verify)
    return _written(lines, check, options)


def _merge(rest: list[str]) -> int:
    parser = _parser("merge", epilog="Exit code 1: --verify found other tensors than the merge's.")
    parser.add_argument("recipe", type=Path, metavar="RECIPE.yaml")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    _add_write_options(parser, "load what was written and compare its tensors with the merge")
    options = parser.parse_args(rest)
    from evomerge.cli.export import merge_file

    write, verify = _write_options(options), options.verify
    lines, check = merge_file(options.recipe, options.out, write, verify=verify)
    return _written(lines, check, options)


def _written(lines: Sequence[str], check: Check | None, options: argparse.Namespace) -> int:
    """Prints what an export says, and uploads it where that is asked for and nothing is wrong."""
    for line in [*lines, *(check.lines if check else ())]:
        print(line)
    if check and not check.passed:
        return 1
    if options.push:
        from evomerge.export import push

        print(f"pushed to {push(options.out, options.push, public=options.public)}")
    return 0


def _add_write_options(parser: argparse.ArgumentParser, verify: str) -> None:
    parser.add_argument(
        "--dtype", default="auto", help="auto (as the base), float32, bfloat16 or float16"
    )
    parser.add_argument("--max-shard-size", default="5GB", help="of one safetensors file")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in DIR")
    parser.add_argument("--verify", action="store_true", help=verify)
    parser.add_argument(
        "--push", metavar="USER/NAME", help="then upload it to the hub, as a private repository"
    )
    parser.add_argument("--public", action="store_true", help="with --push: as a public one")


def _write_options(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "dtype": options.dtype,
        "max_shard_size": options.max_shard_size,
        "overwrite": options.overwrite,
    }


def _import(rest: list[str]) -> int:
    parser = _parser("import")
    parser.add_argument("file", type=Path, help="a mergekit-evolve configuration")
    parser.add_argument("--out", type=Path, help="where to write ours; stdout otherwise")
    options = parser.parse_args(rest)
    import yaml

    from evomerge.mergekit import import_evolve

    config = {k: v for k, v in import_evolve(_read(options.file)).items() if v is not None}
    notes = config.pop("notes", [])
    objectives = config.pop("objectives", [])
    config["objective"] = {o.pop("name"): o for o in map(dict, objectives)}
    text = "".join(f"# {note}\n" for note in notes)
    text += yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    if options.out:
        options.out.write_text(text)
        print(
            f"wrote {options.out}; search it with: evomerge search {shlex.quote(str(options.out))}"
        )
    else:
        print(text, end="")
    return 0


def _doctor(rest: list[str]) -> int:
    parser = _parser("doctor", epilog="Exit code 0: all can be merged; 2: one cannot as it is.")
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="experts: [NAME=]folder or hub id"
    )
    parser.add_argument("--base", required=True, help="the model that they were fine-tuned from")
    parser.add_argument("--json", type=Path, help="write everything as JSON ('-': stdout)")
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="write one picture")
    options = parser.parse_args(rest)
    from evomerge.cli.doctor import doctor

    return doctor(options)


def _zoo(rest: list[str]) -> int:
    parser = _parser("zoo")
    parser.add_argument("--out", type=Path, help="folder; by default the cache folder")
    parser.add_argument("--size", default="small", help="tiny, small (default) or medium")
    options = parser.parse_args(rest)
    from evomerge.zoo import build_zoo

    print(build_zoo(out=options.out, size=options.size))
    return 0


def _list(rest: list[str]) -> int:
    parser = _parser("list")
    parser.add_argument("what", help=", ".join(LISTS))
    parser.add_argument("--include-path", help="folder of your own task YAMLs (for tasks)")
    options = parser.parse_args(rest)
    if options.what not in LISTS:
        raise unknown_name("list", options.what, LISTS)
    if options.what == "methods":
        from evomerge.cli.methods import method_lines

        print("\n".join(method_lines()))
        return 0
    for name, text in _entries(options.what, options.include_path):
        print(f"{name:<24} {text}".rstrip())
    return 0


def _entries(what: str, include_path: str | None) -> list[tuple[str, str]]:
    if what == "spaces":
        from evomerge.space import known_spaces, load_space

        return [
            (name, " ".join(str(load_space(str(path)).get("description", "")).split()))
            for name, path in sorted(known_spaces().items())
        ]
    if what == "optimizers":
        from evomerge.resources import resource_folder

        return [
            (path.stem, path.read_text().splitlines()[0].lstrip("# "))
            for path in sorted((resource_folder("conf") / "optimizer").glob("*.yaml"))
        ]
    from evomerge.evaluators.tasks import list_tasks

    return [(name, "") for name in list_tasks(include_path)]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as e:
        raise ConfigError(f"{path} cannot be read: {e.strerror}.") from e
