"""How much memory the workers of one machine share.

    python benchmarks/shared_memory.py [--workers 2] [--experts 3]

Writes a base and experts (a Llama shape of 26M parameters, fp32), lets every worker process map
them and merge one candidate, and reads the kernel's own account of each process at the end, when
all have touched everything: ``Pss`` counts a page that n processes map as 1/n. In units of one
model, summed over the workers:

* ``mapped``: base, experts and what the method prepared, as ``Pss`` of file-backed pages: about
  1 + K (and half a model per expert where ranks are kept) however many workers there are;
* ``unshared``: the same if every worker had its own copy (``Rss``);
* ``private``: everything else that the workers hold by merging, the merged models themselves.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

HIDDEN, LAYERS, VOCABULARY, INNER = 512, 6, 16_000, 1408
METHODS = {
    "task_arithmetic": {"weight": 0.4},
    "ties": {"weight": 0.4, "density": 0.3, "lambda": 1.0},
}


def write_model(folder: Path, seed: int, base: dict[str, torch.Tensor] | None) -> Any:
    """A checkpoint folder of random weights; an expert is the base and some noise."""
    random = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for i in range(LAYERS):
        for part, shape in (
            ("self_attn.q_proj", (HIDDEN, HIDDEN)),
            ("self_attn.k_proj", (HIDDEN, HIDDEN)),
            ("self_attn.v_proj", (HIDDEN, HIDDEN)),
            ("self_attn.o_proj", (HIDDEN, HIDDEN)),
            ("mlp.gate_proj", (INNER, HIDDEN)),
            ("mlp.up_proj", (INNER, HIDDEN)),
            ("mlp.down_proj", (HIDDEN, INNER)),
        ):
            shapes[f"model.layers.{i}.{part}.weight"] = shape
    tensors = {n: torch.randn(s, generator=random) * 0.02 for n, s in shapes.items()}
    if base is not None:
        tensors = {n: base[n] + 0.1 * t for n, t in tensors.items()}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "llama", "num_attention_heads": 8, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    return tensors


def memory() -> dict[str, float]:
    """Bytes of this process: Pss and Rss of mapped files, and what is its own."""
    found = {"pss_file": 0.0, "rss_file": 0.0, "anonymous": 0.0}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]:
        key, value, *_ = line.split()
        kilobytes = float(value) * 1024
        if key in {"Pss_File:", "Pss_Shmem:"}:
            found["pss_file"] += kilobytes
        elif key == "Anonymous:":
            found["anonymous"] += kilobytes
        elif key == "Rss:":
            found["rss_file"] += kilobytes
    found["rss_file"] -= found["anonymous"]
    return found


def work(method: str, folders: list[str], cache: str, barrier: Any, queue: Any) -> None:
    """One worker: map, merge one candidate, wait for the others, look."""
    os.environ["EVOMERGE_CACHE"] = cache
    torch.set_num_threads(1)
    from evomerge.experts import ExpertPool
    from evomerge.materialize import Merger

    before = memory()
    pool = ExpertPool.open(folders[0], {f"e{i}": f for i, f in enumerate(folders[1:])})
    merger = Merger(pool, method, {}, cache=Path(cache))
    shared = {"lambda"}
    values = {
        k: [v] * (1 if k in shared else len(pool.experts)) for k, v in METHODS[method].items()
    }
    out = {}
    for tensor in pool.tensors:
        out[tensor.name] = torch.empty(tensor.shape)
        merger.merge_tensor(tensor.name, values, out[tensor.name])
    barrier.wait()
    after = memory()
    queue.put({k: after[k] - before[k] for k in after})
    barrier.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--experts", type=int, default=3)
    o = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    figures: dict[str, Any] = {"workers": o.workers, "experts": o.experts}
    with tempfile.TemporaryDirectory() as root:
        base = write_model(Path(root) / "base", 0, None)
        size = sum(t.numel() * 4 for t in base.values())
        for i in range(o.experts):
            write_model(Path(root) / f"e{i}", i + 1, base)
        del base
        folders = [str(Path(root) / n) for n in ("base", *(f"e{i}" for i in range(o.experts)))]
        for method in METHODS:
            barrier, queue = context.Barrier(o.workers), context.Queue()
            arguments = (method, folders, str(Path(root) / "cache"), barrier, queue)
            processes = [context.Process(target=work, args=arguments) for _ in range(o.workers)]
            for p in processes:
                p.start()
            found = [queue.get(timeout=600) for _ in processes]
            for p in processes:
                p.join()
            figures[method] = {
                "mapped": round(sum(f["pss_file"] for f in found) / size, 2),
                "unshared": round(sum(f["rss_file"] for f in found) / size, 2),
                "private": round(sum(f["anonymous"] for f in found) / size, 2),
            }
            print(f"{method}: {figures[method]}", flush=True)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
