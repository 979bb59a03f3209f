"""How close the in-place merge comes to the speed of memory.

    python benchmarks/merge.py [--entries 16777216] [--experts 3] [--repeats 7] [--threads 1]

Side by side in one run, median of ``repeats``: one ``copy_`` of the tensor (the physical limit of
one pass), our ``weighted_sum`` of base + K experts, and the expression as one would first write
it. ``passes`` is our time in units of one copy; reading K + 1 tensors and writing one is about
(K + 2) / 2 copies.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from evomerge.methods.kernels import weighted_sum


def seconds(run, repeats: int, device: str) -> float:
    times = []
    for i in range(repeats + 1):
        start = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        if i:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--entries", type=int, default=1 << 24)
    parser.add_argument("--experts", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="2 beside a busy process stall")
    parser.add_argument("--device", default="cpu")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    figures: dict[str, float | int | str] = {
        "entries": o.entries, "experts": o.experts, "device": o.device,
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    weights = [1 - 0.3 * o.experts, *[0.3] * o.experts]
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        sources = [torch.randn(o.entries, device=o.device).to(dtype) for _ in range(o.experts + 1)]
        out = torch.empty_like(sources[0])

        def ours(sources=sources, out=out) -> None:
            weighted_sum(out, sources, weights)

        def naive(sources=sources, out=out) -> None:
            base, *experts = (s.float() for s in sources)
            out.copy_(base + sum(0.3 * (e - base) for e in experts))

        def copy(sources=sources, out=out) -> None:
            out.copy_(sources[0])

        limit = seconds(copy, o.repeats, o.device)
        mine = seconds(ours, o.repeats, o.device)
        plain = seconds(naive, o.repeats, o.device)
        figures[f"{name}_copy_ms"] = round(limit * 1e3, 2)
        figures[f"{name}_merge_ms"] = round(mine * 1e3, 2)
        figures[f"{name}_passes"] = round(mine / limit, 2)
        figures[f"{name}_limit_passes"] = (o.experts + 2) / 2
        figures[f"{name}_speedup_over_naive"] = round(plain / mine, 2)
        print(
            f"{name}: copy {limit * 1e3:.1f} ms, merge {mine * 1e3:.1f} ms "
            f"({mine / limit:.1f} copies; limit {(o.experts + 2) / 2:.1f}), "
            f"naive {plain * 1e3:.1f} ms"
        )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
