"""mergekit on the `mergekit.yaml` of our exports, against the tensors that we exported.

    python benchmarks/mergekit_roundtrip.py --mergekit-python /path/to/bin/python [--out OUT]

Every method that both programs have, on tiny random Llamas with coefficients that differ between
groups of tensors: float32 models, the same written as bfloat16, and bfloat16 models. mergekit
(0.1.5) runs in an environment of its own, one process for all. The error is the largest
difference over the largest weight; in bfloat16 what counts is how many entries differ by more
than one rounding (a spacing of bfloat16 at that entry). DARE and DELLA draw other random masks in
every program, so they are compared at density 1.

Changes of bfloat16 weights are often equally large. Of those at the threshold of TIES,
breadcrumbs and SCE mergekit keeps what its sort happens to put first; the recipes here say
``equal: torch``, as those read from a mergekit YAML do, so that both must make the same choice.

Vocabularies that differ (``tokenizer_source``): one expert has three tokens more and has exchanged
the ids of two; merged in the base's vocabulary and in its own. (Rows of no token, which some
models have at the end, are dropped by mergekit; here they stay, and count in the density of TIES.)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from evomerge.experts import ExpertPool
from evomerge.export import export
from evomerge.groups import GroupSpec, build_groups
from evomerge.mergekit.table import METHODS
from evomerge.methods import method
from evomerge.recipe import Recipe
from tests.diagnose.variants import add_tokens
from tests.models import build_family
from tests.test_vocabulary import swap_tokens

_MERGEKIT = """
import json, sys, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
options = MergeOptions(copy_tokenizer=False, write_model_card=False)
for source, out in json.load(open(sys.argv[1])):
    try:
        data = yaml.safe_load(open(source))
        run_merge(MergeConfiguration.model_validate(data), out, options)
    except Exception as e:
        print(f"FAILED {source}: {e!r}", flush=True)
"""

SPELLED = ("linear", "task_arithmetic", "slerp", "ties")
"""Methods that are also merged with vocabularies that differ."""
CASES = (("float32", "auto"), ("float32", "bfloat16"), ("bfloat16", "auto"))
"""What the models are stored in, and what the merge is written in."""


Case = tuple[str, str, Path]
"""What is merged, its dtype, and our export."""


def recipe_of(name: str, family: dict[str, Path], tokenizer: str | None = None) -> Recipe:
    """A recipe that mergekit can express, with as many experts as the method takes."""
    chosen, row = method(name), METHODS[name]
    experts = {n: str(family[n]) for n in ("expert_a", "expert_b")[: chosen.n_experts[1]]}
    pool = ExpertPool.open(str(family["base"]), experts, tokenizer=tokenizer)
    spec = GroupSpec(blocks=2, roles="split", outside="split")
    groups = tuple(g.group for g in build_groups(spec, pool.tensors, pool.n_layers))
    random = np.random.default_rng(1)
    coefficients = {}
    for p, about in chosen.parameters.items():
        shape = (len(groups), 1 if about.shared else len(experts))
        low, high = about.low, about.high
        coefficients[p] = random.uniform(low, high, shape)
        if p in row.only or p in row.equal:
            coefficients[p][:] = row.only.get(p, 1.0)
    if "masks" in row.differs and "density" in coefficients:
        coefficients["density"][:] = 1.0
    fixed = {**row.minor, **{p: bool(row.parameters[p]) for p in row.words}}
    if any(p in row.words for p in fixed):
        known = method(name).fixed
        fixed = {p: v for p, v in fixed.items() if p in known}
        fixed |= {p: spelled(row.words[p], row.parameters[p]) for p in row.words if p in known}
    base = pool.base.ref if pool.base else None
    return Recipe(name, pool.refs, base, groups, coefficients, fixed, pool.spelling)


def spelled(words: dict, theirs: float | None) -> object:
    """Our word for mergekit's default."""
    return next(ours for ours, value in words.items() if value == bool(theirs))


def differences(ours: Path, theirs: Path) -> tuple[float, int, int]:
    """Largest difference over the largest weight; entries beyond one rounding; entries."""
    wanted, got = (load_all(p) for p in (ours, theirs))
    missing = wanted.keys() ^ got.keys()
    assert not missing, missing
    relative, beyond, n = 0.0, 0, 0
    for name, a in wanted.items():
        assert a.dtype == got[name].dtype, (name, a.dtype, got[name].dtype)
        a, b = a.double(), got[name].double()  # noqa: PLW2901
        gap = (a - b).abs()
        # the spacing of bfloat16 at the larger of both: 8 significant bits
        spacing = 2.0 ** (torch.floor(torch.log2(torch.maximum(a.abs(), b.abs()))) - 7)
        roundings = torch.where(gap > 0, gap / spacing, 0.0)
        relative = max(relative, float(gap.max() / a.abs().max()))
        beyond += int((roundings > 1).sum())
        n += a.numel()
    return relative, beyond, n


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint folder."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def run_mergekit(python: str, jobs: list[tuple[str, str]], folder: Path) -> None:
    """mergekit's merges, and what of them it refused; one process for all."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [python, "-c", _MERGEKIT, str(folder / "jobs.json")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    print("\n".join(failed) or f"mergekit merged {len(jobs)} configurations")
    if done.returncode:
        print(done.stderr[-2000:])


def main() -> int:
    """Runs it and prints a table; 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mergekit-python", required=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.out or Path(temporary)).absolute()
        cases: list[Case] = []
        for stored, written in CASES:
            family = build_family(folder / stored, layers=3, hidden=32, tie=False, dtype=stored)
            for name in METHODS:
                ours = folder / f"ours-{stored}-{written}-{name}"
                out = export(recipe_of(name, family), ours, dtype=written, overwrite=True)
                cases.append((name, stored if written == "auto" else f"to {written}", out))
        cases += spelled_otherwise(folder)
        jobs = [(str(out / "mergekit.yaml"), str(theirs(out))) for _, _, out in cases]
        run_mergekit(options.mergekit_python, jobs, folder)
        return report(cases)


def theirs(ours: Path) -> Path:
    """Where mergekit writes the same merge."""
    return ours.with_name(f"{ours.name}-by-mergekit")


def spelled_otherwise(folder: Path) -> list[Case]:
    """Merges of models whose vocabularies differ."""
    family = build_family(folder / "spelled", layers=3, hidden=32, tie=False)
    more = add_tokens(family["expert_b"], folder / "more", n=3, rows=3)
    family["expert_b"] = swap_tokens(more, folder / "other")
    cases = []
    for name in SPELLED:
        for tokenizer in ("base", "expert_b"):
            if METHODS[name].base == "first" and tokenizer == "base":
                continue  # it merges two models, and the base is none of them
            recipe = recipe_of(name, family, tokenizer)
            out = export(recipe, folder / f"spelled-{name}-{tokenizer}", overwrite=True)
            cases.append((f"{name}, tokens of {tokenizer}", "float32", out))
    return cases


def report(cases: list[Case]) -> int:
    """The table, and its worst figures."""
    bad = 0
    worst: dict[str, float] = {}
    print("| method | dtype | largest difference / weight | beyond a rounding |")
    print("|---|---|---|---|")
    for name, dtype, ours in cases:
        if not theirs(ours).exists():
            print(f"| {name} | {dtype} | mergekit made nothing | |")
            bad += 1
            continue
        relative, beyond, n = differences(ours, theirs(ours))
        exact = dtype == "float32"
        bad += relative > 1e-6 if exact else beyond > 0
        shown = "" if exact else f"{beyond} of {n} "
        print(f"| {name} | {dtype} | {relative:.1e} | {shown}|")
        worst[dtype] = max(worst.get(dtype, 0.0), relative if exact else beyond)
    print(json.dumps({"differing": int(bad), "worst_relative_or_entries": worst}))
    return int(bad > 0)


if __name__ == "__main__":
    raise SystemExit(main())
