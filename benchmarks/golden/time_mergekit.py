"""Times mergekit's linear and TIES on the files that benchmarks/materialize.py wrote.

    /path/to/mergekit/env/bin/python benchmarks/golden/time_mergekit.py FOLDER N_EXPERTS THREADS

Prints JSON: seconds to merge all tensors in memory, and seconds to write the result as mergekit
does for every candidate.
"""

import json
import sys
import time

import torch
from mergekit.merge_methods import registry
from mergekit.merge_methods.base import PerInputValues, TensorEntry, TensorGroup, TensorMetadata
from safetensors.torch import load_file, save_file

folder, n_experts, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(threads)
clock = time.thread_time if threads == 1 else time.perf_counter
experts = [str(k) for k in range(n_experts)]
models = {n: load_file(f"{folder}/{n}.safetensors") for n in ("base", *experts)}
for model in models.values():  # mapped files are read before the clock starts
    for tensor in model.values():
        tensor.view(torch.uint8).sum()
figures = {}
for name, given in (("linear", {"weight": 0.5}), ("ties", {"weight": 0.5, "density": 0.3})):
    method = registry.get(name)
    who = experts if name == "linear" else ["base", *experts]
    parameters = {p: PerInputValues([(e, v) for e in experts]) for p, v in given.items()}
    start = clock()
    merged = {}
    for tensor in models["base"]:
        entries = tuple(
            TensorEntry(id=m, tensor=models[m][tensor], is_base=m == "base") for m in who
        )
        group = TensorGroup(entries=entries, metadata=TensorMetadata(name=tensor))
        (merged[tensor],) = method((group,), parameters=parameters)
    figures[name] = clock() - start
    start = clock()
    save_file({n: t.contiguous() for n, t in merged.items()}, f"{folder}/merged.safetensors")
    figures["write"] = clock() - start
print(json.dumps(figures))
