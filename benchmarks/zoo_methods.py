"""Every merge method on the zoo without a search: one number for all experts and layers.

    python benchmarks/zoo_methods.py [--methods tsv pcb] [--documents 48] [--points 6]

Sweeps a method's first parameter over its default range, with all others and the settings at their
defaults (and the variants listed below), and prints the best: the gain in log-likelihood recovered
between the base (0) and each domain's expert (1) on text that the experts did not see, mean and by
domain. On one core and 48 documents a point takes half a second, besides what is prepared.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import torch

from evomerge.errors import ConfigError
from evomerge.experts import ExpertPool
from evomerge.materialize import LiveModel, Merger
from evomerge.methods import METHODS
from evomerge.zoo.build import build_zoo

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "task_arithmetic": [{"norms": "equal"}],
    "tsv": [{"rank_fraction": 1.0}, {"embeddings": True}],
    "pcb": [{"ratio": 0.3}],
    "consensus": [{"min_experts": 1}],
    "localize_stitch": [{"density": 0.4}],
    "wudi": [{"time": 30.0}, {"time": 0.0, "keep": 1.0}],
    "opcm": [{"alpha": 0.0}],
    "doge": [{"eta": 1.0}],
}
DOMAINS = ("code", "prose", "math")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--methods", nargs="*")
    parser.add_argument("--documents", type=int, default=48)
    parser.add_argument("--points", type=int, default=6)
    o = parser.parse_args()
    torch.set_num_threads(1)
    folder = build_zoo()
    pool = ExpertPool.open(str(folder / "base"), {d: str(folder / d) for d in DOMAINS})
    live = LiveModel(pool, dtype="float32")
    texts = {d: _documents(folder, d, o.documents, live.tokenizer) for d in DOMAINS}

    def scores(merger: Merger, values: dict[str, list[float]]) -> np.ndarray:
        with torch.no_grad():
            for tensor, out in live.tensors.items():
                merger.merge_tensor(tensor, values, out)
            return np.array([_loss(live.model, texts[d]) for d in DOMAINS])

    plain = Merger(pool, "task_arithmetic", {})
    base, *alone = (
        scores(plain, {"weight": [float(i == j) for j in range(3)]}) for i in (None, 0, 1, 2)
    )
    room = base - np.array([alone[i][i] for i in range(3)])
    for name, chosen in METHODS.items():
        if (o.methods and name not in o.methods) or chosen.n_experts[1] is not None:
            continue
        swept = next(iter(chosen.parameters))
        p = chosen.parameters[swept]
        for fixed in [{}, *VARIANTS.get(name, [])]:
            merger, found = Merger(pool, name, fixed), []
            for x in np.linspace(p.low, p.high, o.points):
                values = {
                    n: [float(x) if n == swept else q.default] * (1 if q.shared else 3)
                    for n, q in chosen.parameters.items()
                }
                try:
                    gains = (base - scores(merger, values)) / room
                except ConfigError:  # weights that cannot be normalised
                    continue
                found.append((float(gains.mean()), float(x), gains.round(2).tolist()))
            mean, x, gains = max(found)
            print(f"{name:16s} {fixed!s:30s} {swept} {x:.2f}: {mean:.2f} {gains}", flush=True)


def _documents(folder: Any, domain: str, n: int, tokenizer: Any) -> list[torch.Tensor]:
    entries = json.loads((folder / "tasks" / f"zoo_{domain}_ll.json").read_text())[:n]
    return [tokenizer(e["text"], return_tensors="pt").input_ids[:, :256] for e in entries]


def _loss(model: Any, documents: list[torch.Tensor]) -> float:
    """Nats per token, all tokens alike."""
    pairs = [(float(model(d, labels=d).loss), d.shape[1] - 1) for d in documents]
    return sum(loss * n for loss, n in pairs) / sum(n for _, n in pairs)


if __name__ == "__main__":
    main()
