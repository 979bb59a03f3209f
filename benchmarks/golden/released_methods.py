"""Makes tests/methods/golden/released.npz: small merges by the methods' own released code.

    python benchmarks/golden/released_methods.py FOLDER

FOLDER holds git repositories (bare or not), under these names:

    fusion_bench   github.com/tanganke/fusion_bench            at 54c9e8c
    pcb-merging    github.com/duguodong7/pcb-merging           at 5897888
    MergeLLM       github.com/yule-BUAA/MergeLLM               at 9178ef9
    MLLMerging     github.com/WalkerWorldPeace/MLLMerging      at 5f8a458

Functions are taken out of their files and run as they are, on one matrix that is the whole model,
at weight 1; what they import of their own packages (timers, progress bars) is left out.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import subprocess
import sys
import textwrap
import types
import typing
from pathlib import Path

import numpy as np
import torch

OUT = Path(__file__).parents[2] / "tests/methods/golden/released.npz"
SHAPE = (24, 40)


def source(folder: Path, path: str, first: str = "", last: str = "") -> str:
    """A file's text, or the part of it from one marker to the next."""
    text = subprocess.run(
        ["git", "-C", str(folder), "show", f"HEAD:{path}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if text.returncode:
        sys.exit(f"{folder}: {text.stderr}")
    found = text.stdout[text.stdout.index(first) :] if first else text.stdout
    found = found[: found.index(last)] if last else found
    own = r"^(from|import) (fusion_bench|tqdm|transformers).*?(\(\n.*?\)\n|\n)"
    return textwrap.dedent(re.sub(own, "", found, flags=re.MULTILINE | re.DOTALL))


def functions(text: str) -> dict:
    names = {n: getattr(typing, n) for n in ("Dict", "Iterable", "List", "Optional", "Tuple")}
    scope = {
        **names, "np": np, "torch": torch, "nn": torch.nn, "math": math, "Tensor": torch.Tensor,
        "StateDictType": dict, "timeit_context": lambda *_: contextlib.nullcontext(),
        "tqdm": lambda x, **_: x,
    }  # fmt: skip
    exec(compile(text, "released", "exec"), scope)
    return scope


def fusion_bench(folder: Path, base, experts) -> dict:
    methods = "fusion_bench/method"
    vectors = [{"w": e - base} for e in experts]
    tsv = functions(source(folder, f"{methods}/task_singular_vector/utils/TSVM_utils.py"))
    iso = functions(source(folder, f"{methods}/isotropic_merging/iso_utils.py"))
    tall = functions(
        source(folder, f"{methods}/tall_mask/utils.py", last="def construct_tall_mask")
    )
    flat = torch.stack([(e - base).reshape(-1) for e in experts])
    masks = [
        tall["generate_task_masks"](
            flat, e.reshape(-1), base.reshape(-1), tall_mask_lambda=0.4
        ).view(-1)
        for e in experts
    ]
    consensus = ((sum(m.long() for m in masks) >= 2) * flat.sum(0)).view_as(base)
    return {
        "tsv": base + tsv["compute_and_sum_svd_mem_reduction"](vectors, accelerator="cpu")["w"],
        "iso_c": base + iso["iso_c"](vectors, accelerator="cpu")["w"],
        "consensus": base + consensus,
        "opcm": _opcm(folder, methods, base, experts),
    }


def _opcm(folder: Path, methods: str, base, experts):
    """The loop over models, whose one matrix this is, around the released step."""
    step = functions(
        source(folder, f"{methods}/opcm/utils.py", "def _svd", "def frobenius")
        + source(folder, f"{methods}/opcm/opcm.py", "    def merge_linear", "    def merge_other")
    )["merge_linear_weights"]
    merged, state = experts[0], types.SimpleNamespace(previous_lambda_t=1.0, lambda_t=1.0)
    lengths = [float((experts[0] - base).norm())]
    for expert in experts[1:]:
        lengths.append(float((expert - base).norm()))
        merged = step(state, merged, base, expert, "w", 0.5)
        state.previous_lambda_t = float((merged - base).norm()) * len(lengths) / sum(lengths)
        merged = base + (merged - base) / state.previous_lambda_t
    return merged


def widen(folder: Path, base, experts):
    both = functions(
        source(
            folder,
            "model_merging_methods/merging_methods.py",
            "        def rank_per_param",
            "        def merge_param_magnitude_direction(",
        )
    )
    lengths = torch.stack([(e.norm(dim=0) - base.norm(dim=0)).abs() for e in experts])
    turns = torch.stack([1.0 - torch.cosine_similarity(e, base, dim=0) for e in experts])
    rank = both["rank_per_param_magnitude_or_direction_within_model"]
    deltas = torch.stack([e - base for e in experts])
    return both["merge_per_param_magnitude_direction"](
        deltas, base, rank(lengths), rank(turns), 1.0, 1.0
    )


def pcb(folder: Path, base, experts):
    merge = functions(source(folder, "pcb-merging.py", "def normalize", "### With"))["PCB_merge"]
    deltas = torch.stack([(e - base).reshape(-1) for e in experts])
    return base + merge(deltas, pcb_ratio=0.1)[0].view_as(base)


def wudi(folder: Path, base, experts):
    class Model(torch.nn.Module):
        def __init__(self, weight) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(weight.float())

    merge = functions(source(folder, "LLaMA-Factory/swudi_aswudi.py"))["swudi_merge"]
    settings = {"exp_time": 300.0, "truncate_rank_ratio": 0.85, "progress": False}
    models = [Model(e) for e in experts]
    return merge(Model(base), models, [], merge_device=None, **settings)["w"].double()


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_default_dtype(torch.float64)
    random = torch.Generator().manual_seed(0)
    base = torch.randn(SHAPE, generator=random).float().double()
    experts = [
        (base + 0.1 * torch.randn(SHAPE, generator=random)).float().double() for _ in range(3)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        found = {
            **fusion_bench(folder / "fusion_bench", base, experts),
            "pcb": pcb(folder / "pcb-merging", base, experts),
            "widen": widen(folder / "MergeLLM", base, experts),
            "wudi": wudi(folder / "MLLMerging", base, experts),
        }
    given = {"base": base, **{f"expert_{i}": e for i, e in enumerate(experts)}}
    arrays = {name: t.float().numpy() for name, t in (given | found).items()}
    np.savez_compressed(OUT, **arrays)
    print(f"{OUT}: {sorted(found)}, {OUT.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
