"""What a candidate's weights cost, against the speed of memory and against mergekit.

    python benchmarks/materialize.py [--experts 2,4] [--dtypes float32,bfloat16] [--repeats 9]
        [--threads 1] [--layers 12] [--mergekit-python /path/to/environment/bin/python]

A Llama shape of 106M parameters with random weights. In every round one candidate of each method
and a copy of the model follow each other; ratios are taken within a round, and are medians over
rounds (eager ones over a third as many). Times are CPU seconds of the calling thread where there
is one thread (the machine may be shared), else wall-clock seconds.

* ``linear_limit_ratio``: (K + 2) passes over the model, at the speed of copying it, in units of
  our task arithmetic (``_eager``: without a compiler). 1 is the speed of memory.
* ``<method>_over_linear``: a candidate of the method in units of a linear one, both compiled, or
  both not (``_eager``).
* ``mergekit_<method>_speedup``: mergekit's time for the same tensors in units of ours, compiled,
  with the candidate written to disk as mergekit does (``_unwritten``: without); null without
  ``--mergekit-python``.
* ``peak_models``: most memory of its own that a process has in use while it prepares and merges,
  in models, the model written among it, and K + 1 for base and experts, which are mapped files
  (not the code of libraries, which processes share); and ``peak_budget``: K + 2, and for the
  sparsifying methods 2 bytes per parameter and expert.

On a 2-core AMD EPYC with AVX-512 (Zen 4), gcc 12, 1 thread, torch 2.13, quiet machine, the whole
shape and mergekit beside it, 8 minutes; a linear candidate of 106M parameters takes 0.06 and
0.10 s in fp32, 0.03 and 0.06 s in bf16::

                            fp32, 2    fp32, 4    bf16, 2    bf16, 4
    linear_limit_ratio      1.10       1.29       1.22       1.13
    ... without compiler    0.79       0.82       0.29       0.27
    ties_over_linear        1.3        1.5        1.7        1.7
    dare_ties_over_linear   0.9        1.1        1.5        1.6
    della_over_linear       1.5        2.0        2.7        2.9
    breadcrumbs             1.2        1.3        1.5        1.6
    ties, eager             5.3        5.6        3.2        3.4
    dare_ties, eager        6.3        6.9        3.9        4.4
    della, eager            9.1        10.3       5.6        5.9
    breadcrumbs, eager      3.6        4.1        2.2        2.4
    mergekit's linear       26         14         25         20
    ... unwritten           6.7        4.0        14         14
    mergekit's TIES         311        328        214        225
    ... unwritten           302        323        209        223
    peak, linear (budget)   3.98 (4)   5.99 (6)   3.94 (4)   5.97 (6)
    peak, ties              5.01 (5)   8.02 (8)   6.02 (6)   10.03 (10)
    2 threads: linear       0.78       0.78       0.82       0.90
    ... ties                1.0        1.3        1.4        1.6
    ... della               1.1        1.5        1.8        2.1

A ratio above 1 is possible: streaming stores need not read what they overwrite. With two threads
times are wall-clock seconds, and memory is hardly faster than with one.

DELLA is bound by arithmetic, not by memory: in bf16 with 2 experts its loops have some 119
vector instructions for 32 entries, TIES' 65, and a core starts at most two a cycle. Of 75 cycles
for 16 entries of 4 experts (in cache) it would save 3 to divide by nothing, 5 to draw nothing, 12
to draw and compare in 16 bits, which would not be what the eager form computes; probabilities in
a loop of their own save none. What TIES takes above its budget is 5 to 7 MB of pieces it works on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from evomerge.methods import METHODS, MergeMethod, Sources, compiled

SPARSE = ("ties", "dare_ties", "della", "breadcrumbs")
HIDDEN, LAYERS, VOCABULARY, INNER = 768, 12, 32_000, 2176


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Llama with tied embeddings and grouped keys and values: 106M parameters."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for i in range(layers):
        for part, shape in (
            ("self_attn.q_proj", (HIDDEN, HIDDEN)),
            ("self_attn.k_proj", (HIDDEN // 2, HIDDEN)),
            ("self_attn.v_proj", (HIDDEN // 2, HIDDEN)),
            ("self_attn.o_proj", (HIDDEN, HIDDEN)),
            ("mlp.gate_proj", (INNER, HIDDEN)),
            ("mlp.up_proj", (INNER, HIDDEN)),
            ("mlp.down_proj", (HIDDEN, INNER)),
            ("input_layernorm", (HIDDEN,)),
            ("post_attention_layernorm", (HIDDEN,)),
        ):
            found[f"model.layers.{i}.{part}.weight"] = shape
    return found | {"model.norm.weight": (HIDDEN,)}


def write_models(folder: Path, dtype: torch.dtype, n_experts: int, layers: int) -> None:
    """base.safetensors and 0.safetensors, 1.safetensors, ...: experts 2% away from the base."""
    for k in range(-1, n_experts):
        random = torch.Generator().manual_seed(0)
        noise = torch.Generator().manual_seed(k + 1)
        tensors = {}
        for name, shape in shapes(layers).items():
            base = torch.randn(shape, generator=random)
            if k >= 0:
                base += 0.02 * torch.randn(shape, generator=noise)
            tensors[name] = base.to(dtype)
        save_file(tensors, folder / f"{'base' if k < 0 else k}.safetensors")


class Model:
    """Base and K mapped experts, and the live model that merges are written into."""

    def __init__(self, folder: Path, n_experts: int) -> None:
        self.base = load_file(folder / "base.safetensors")
        self.experts = [load_file(folder / f"{k}.safetensors") for k in range(n_experts)]
        self.out = {name: torch.empty_like(t) for name, t in self.base.items()}

    def merger(self, method: MergeMethod) -> Callable[[], None]:
        """Prepares; the result merges a whole candidate."""
        k = len(self.experts)
        keys = tuple(f"expert {i}" for i in range(k))
        bases = {
            name: method.prepare(
                Sources(name, base, [e[name] for e in self.experts], keys), None, method.fixed
            )
            for name, base in self.base.items()
        }
        values = {
            name: [p.default] * (1 if p.shared else k) for name, p in method.parameters.items()
        }
        values["weight"] = [0.4] * k  # not 1 in total: the base has to be read

        def merge() -> None:
            for name, out in self.out.items():
                method.combine(out, bases[name], values, method.fixed)

        return merge

    def copy(self) -> None:
        for name, out in self.out.items():
            out.copy_(self.base[name])


def rounds(runs: Mapping[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Seconds of every run, one after the other in each round: others are on the machine, too."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(repeats + 1):
        for name, run in runs.items():
            start = clock()
            run()
            if i > 0:  # the first time pages are mapped
                times[name].append(clock() - start)
    return times


def over(times: Mapping[str, list[float]], name: str, other: str) -> float:
    """The median of the ratios within a round."""
    return statistics.median(a / b for a, b in zip(times[name], times[other], strict=True))


def compiled_now(run: Callable[[], None]) -> None:
    """Compiles what a candidate uses, and waits for it."""
    compiled.COMPILE_AFTER["cpu"] = 0.0
    run()
    compiled.wait()


def measure(
    folder: Path, n_experts: int, repeats: int, mergekit: str | None, methods: list[str]
) -> dict[str, float | None]:
    model = Model(folder, n_experts)
    linear = "task_arithmetic"
    runs = {name: model.merger(METHODS[name]) for name in (linear, "linear", *methods)}
    for run in runs.values():
        compiled_now(run)
    with_copy = {"copy": model.copy, **runs}
    figures: dict[str, float | None] = {}
    os.environ["TORCH_COMPILE_DISABLE"] = "1"
    eager = rounds(with_copy, max(1, repeats // 3))
    del os.environ["TORCH_COMPILE_DISABLE"]
    times = rounds(with_copy, repeats)
    for suffix, of in (("", times), ("_eager", eager)):
        # A copy reads and writes a model: two passes of the K + 2.
        figures[f"linear_limit_ratio{suffix}"] = over(of, "copy", linear) / 2 * (n_experts + 2)
        for name in methods:
            figures[f"{name}_over_linear{suffix}"] = over(of, name, linear)
    figures["linear_seconds"] = statistics.median(times[linear])
    theirs = by_mergekit(folder, n_experts, mergekit) if mergekit else {}
    for name in ("linear", "ties"):
        known = name in theirs and name in times
        ours = statistics.median(times[name]) if known else 1.0
        alone, written = (theirs[name], theirs[name] + theirs["write"]) if known else (None, None)
        figures[f"mergekit_{name}_speedup"] = written and written / ours
        figures[f"mergekit_{name}_speedup_unwritten"] = alone and alone / ours
    return figures


def by_mergekit(folder: Path, n_experts: int, python: str) -> dict[str, float]:
    """Seconds per merge of mergekit's own methods on the same files."""
    script = str(Path(__file__).parent / "golden" / "time_mergekit.py")
    command = [python, script, str(folder), str(n_experts), str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    times: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return times


PEAK = """
import sys, threading
from pathlib import Path
sys.path.insert(0, "benchmarks")
import materialize, torch
from evomerge.methods import METHODS
torch.set_num_threads(1)
def anonymous():
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) * 1024
start = peak = anonymous()
done = threading.Event()
def watch():
    global peak
    while not done.wait(0.01):
        peak = max(peak, anonymous())
threading.Thread(target=watch, daemon=True).start()
model = materialize.Model(Path(sys.argv[1]), int(sys.argv[2]))
model.merger(METHODS[sys.argv[3]])()
done.set()
print(peak - start)
"""


def peak_models(folder: Path, n_experts: int, method: str) -> float:
    """Most anonymous memory of a process that merges, in models, and the models it maps."""
    command = [sys.executable, "-c", PEAK, str(folder), str(n_experts), method]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    model = (folder / "base.safetensors").stat().st_size
    return int(done.stdout) / model + 1 + n_experts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--experts", default="2,4")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--methods", default=",".join(SPARSE))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=LAYERS, help="fewer for a quicker run")
    parser.add_argument("--skip-peak", action="store_true", help="leave peak_models out")
    parser.add_argument("--mergekit-python", help="times mergekit too, with this interpreter")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    methods = [m for m in o.methods.split(",") if m]
    figures: dict[str, object] = {"threads": o.threads}
    for dtype in o.dtypes.split(","):
        for n_experts in map(int, o.experts.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                write_models(Path(folder), getattr(torch, dtype), n_experts, o.layers)
                found = measure(Path(folder), n_experts, o.repeats, o.mergekit_python, methods)
                for method in () if o.skip_peak else ("task_arithmetic", *methods[:1]):
                    found[f"peak_models_{method}"] = peak_models(Path(folder), n_experts, method)
            width = getattr(torch, dtype).itemsize
            found["peak_budget_linear"] = n_experts + 2
            found["peak_budget_sparse"] = n_experts + 2 + 2 * n_experts / width
            for name, value in found.items():
                rounded = None if value is None else round(value, 3)
                figures[f"{dtype}_{n_experts}_{name}"] = rounded
                print(f"{dtype}, {n_experts} experts: {name} {rounded}", flush=True)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
