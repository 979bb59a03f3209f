"""What a candidate costs by merge method, in units of ``linear`` with as many experts.

    python benchmarks/methods.py [--rows 2048] [--columns 4096] [--experts 3] [--repeats 5]

One tensor, one thread, the best of ``repeats``; every method at the default of its parameters,
with the settings and the extra points listed below.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch

from evomerge.methods import METHODS, Sources

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "nuslerp": [{"nuslerp_flatten": False}, {"task_vectors": True}],
    "multislerp": [{"task_vectors": True}],
    "model_stock": [{"filter_wise": True}],
    "sce": [{"select_topk": 0.5}],
}


def seconds(run, repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--experts", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5)
    o = parser.parse_args()
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(0)
    figures: dict[str, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        base = 0.02 * torch.randn(o.rows, o.columns, generator=random)
        experts = [
            (base + 2e-4 * torch.randn(base.shape, generator=random)).to(dtype)
            for _ in range(o.experts)
        ]
        base = base.to(dtype)
        out = torch.empty_like(base)

        def cost(name: str, change: dict[str, Any], base=base, experts=experts, out=out) -> Any:
            chosen = METHODS[name]
            k = min(chosen.n_experts[1] or o.experts, o.experts)
            fixed = {**chosen.fixed, **{s: v for s, v in change.items() if s in chosen.fixed}}
            c = {
                p: [change.get(p, about.default)] * (1 if about.shared else k)
                for p, about in chosen.parameters.items()
            }
            start = time.perf_counter()
            basis = chosen.prepare(Sources("w", base, experts[:k]), None, fixed)
            prepared = time.perf_counter() - start
            merged = seconds(lambda: chosen.combine(out, basis, c, fixed), o.repeats)
            plain = METHODS["linear"]
            linear = seconds(
                lambda: plain.combine(
                    out,
                    plain.prepare(Sources("w", base, experts[:k]), None, plain.fixed),
                    {"weight": [0.5] * k},
                    plain.fixed,
                ),
                o.repeats,
            )
            return prepared, merged, merged / linear

        for name in METHODS:
            for change in [{}, *VARIANTS.get(name, [])]:
                prepared, merged, ratio = cost(name, change)
                note = " ".join(f"{s}={v}" for s, v in change.items())
                kind = str(dtype).removeprefix("torch.")
                figures[" ".join(filter(None, [kind, name, note]))] = round(ratio, 2)
                print(
                    f"{kind:9} {name:16} {note:22} prepare {prepared * 1e3:7.1f} ms, "
                    f"candidate {merged * 1e3:6.1f} ms = {ratio:5.1f} x linear"
                )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
