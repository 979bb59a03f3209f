"""What mergekit makes of small tensors: the expected values of tests/methods/test_golden.py.

    python benchmarks/golden/mergekit_tensors.py tests/methods/golden/mergekit_tensors

Run it in an environment of mergekit's own (mergekit 0.1.5; it needs nothing of evomerge). It
writes OUT.npz, the sources and mergekit's results in fp32, and OUT.json: for every case mergekit's
parameters and the coefficients and settings that mean the same to evomerge.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mergekit.merge_methods import TensorGroup, get

MODELS = ("base", "a", "b", "c")
Case = dict[str, Any]


def sources() -> dict[str, dict[str, torch.Tensor]]:
    """Sets of sources: large and small changes, vectors, and the odd ones."""
    random = torch.Generator().manual_seed(0)

    def family(shape: tuple[int, ...], size: float) -> dict[str, torch.Tensor]:
        base = torch.randn(shape, generator=random)
        deltas = [size * torch.randn(shape, generator=random) for _ in MODELS[1:]]
        common = size * torch.randn(shape, generator=random)
        return {"base": base} | {
            m: base + d + common for m, d in zip(MODELS[1:], deltas, strict=True)
        }

    sets = {
        "matrix": family((16, 20), 0.3),
        "vector": family((48,), 0.3),
        "small": family((12, 16), 2e-4),
        "cube": family((3, 4, 5), 0.3),
    }
    plain = family((6, 7), 0.3)
    sets["equal"] = dict.fromkeys(MODELS, plain["base"])
    sets["zero"] = plain | {"a": torch.zeros(6, 7)}
    sets["antipodal"] = plain | {"b": -plain["a"]}
    opposed = 2 * plain["base"] - plain["a"]
    sets["opposed"] = plain | {"b": opposed}  # antipodal task vectors
    sets["untouched"] = plain | {"a": plain["base"]}
    sparse = {m: t.clone() for m, t in family((16, 20), 0.3).items()}
    for i, m in enumerate(MODELS[1:]):
        keep = torch.rand((16, 20), generator=random) < 0.3 + 0.2 * i
        sparse[m] = torch.where(keep, sparse[m], sparse["base"])
    sets["sparse"] = sparse
    return sets


def cases() -> list[Case]:
    """method, sources, experts, mergekit's base and parameters, our coefficients and settings."""
    found: list[Case] = []

    def add(  # noqa: PLR0917 - a table reads better without names
        method: str,
        where: str,
        experts: str,
        base: str | None,
        parameters: dict[str, Any],
        coefficients: dict[str, list[float]],
        **fixed: Any,
    ) -> None:
        found.append(
            {
                "method": method, "sources": where, "experts": list(experts), "base": base,
                "parameters": parameters, "coefficients": coefficients, "fixed": fixed,
            }
        )  # fmt: skip

    def weights(experts: str, values: list[float]) -> dict[str, dict[str, float]]:
        return {"weight": dict(zip(experts, values, strict=True))}

    for where in ("matrix", "vector", "small", "equal", "zero", "antipodal"):
        for t in (0.0, 0.3, 0.5, 0.9, 1.0):
            add("slerp", where, "ab", "a", {"t": t}, {"t": [t]})
    pairs = ([0.5, 0.5], [0.2, 0.9], [1.0, 0.0], [0.5, -0.5])
    for where in ("matrix", "vector", "small", "cube", "equal", "zero", "antipodal"):
        for w in pairs[: 4 if where == "matrix" else 2]:
            for task_vectors in (False, True):
                if where == "equal" and task_vectors:
                    continue
                base = "base" if task_vectors else None
                mine = {"weight": w}
                settings = {"task_vectors": task_vectors}
                add("nuslerp", where, "ab", base, weights("ab", w), mine, **settings)
                if where not in {"matrix", "cube", "vector"}:
                    continue
                for row_wise in (False, True):
                    wise = {"nuslerp_flatten": False, "nuslerp_row_wise": row_wise}
                    add(
                        "nuslerp", where, "ab", base, weights("ab", w) | wise, mine,
                        **settings, **wise,
                    )  # fmt: skip
    for where in ("matrix", "vector", "small", "equal", "zero", "untouched"):
        for experts, w in (("ab", [0.5, 0.2]), ("abc", [0.3, 0.1, 0.8]), ("a", [0.4])):
            for task_vectors in (False, True):
                if task_vectors and where == "equal":
                    continue  # mergekit refuses three; ours is in test_spherical.py
                base = "base" if task_vectors else None
                for normal in (True, False):
                    add(
                        "multislerp", where, experts, base,
                        weights(experts, w) | {"normalize_weights": normal}, {"weight": w},
                        task_vectors=task_vectors, normalize_weights=normal,
                    )  # fmt: skip
    add("multislerp", "antipodal", "ab", None, weights("ab", [1.0, 1.0]), {"weight": [1.0, 1.0]})
    # Not "small": mergekit's fp32 arccos skips experts at angles below 3e-4 by chance.
    for where in ("matrix", "vector", "equal", "zero"):
        for experts in ("ab", "abc", "a"):
            add("karcher", where, experts, None, {}, {"weight": [0.5] * len(experts)})
    add("karcher", "matrix", "abc", None, {"max_iter": 1}, {"weight": [0.5] * 3}, max_iter=1)
    for where in ("matrix", "vector", "small", "cube", "equal", "opposed", "untouched"):
        for experts in ("ab", "abc"):
            for wise in (False, True):
                add(
                    "model_stock", where, experts, "base", {"filter_wise": wise},
                    {"lambda": [1.0]}, filter_wise=wise, floor=1e-6,
                )  # fmt: skip
    for where in ("matrix", "vector", "small", "sparse", "equal", "untouched"):
        for experts in ("ab", "abc", "a"):
            for topk in (1.0, 0.6, 0.1):
                add(
                    "sce", where, experts, "base", {"select_topk": topk},
                    {"select_topk": [topk], "lambda": [1.0]}, floor=1e-6,
                )  # fmt: skip
    for where in ("matrix", "vector", "sparse", "equal"):
        for experts in ("ab", "abc", "a"):
            for epsilon in (1e-5, 0.2):
                one = [1.0] * len(experts)
                add("ram", where, experts, "base", {"epsilon": epsilon}, {"weight": one},
                    epsilon=epsilon)  # fmt: skip
                for r, alpha in ((0.1, 0.2), (0.7, 3.0)):
                    add(
                        "ramplus_tl", where, experts, "base",
                        {"epsilon": epsilon, "r": r, "alpha": alpha},
                        {"weight": one, "r": [r], "alpha": [alpha]}, epsilon=epsilon,
                    )  # fmt: skip
    for where in ("matrix", "vector", "small", "equal"):
        for t in (0.0, 1e-4, 0.1):
            add("nearswap", where, "a", "base", {"t": t}, {"t": [t]})
    for where in ("matrix", "vector", "cube", "small", "equal", "sparse"):
        for precision in ("float64", "float32") if where != "small" else ("float32",):
            add("arcee_fusion", where, "b", "base", {}, {"lambda": [1.0], "spread": [1.5]},
                divergence=precision)  # fmt: skip
    for where in ("matrix", "vector"):
        for scale in (None, 0.7):
            given = {} if scale is None else {"scale": {"a": scale}}
            add("passthrough", where, "a", None, given, {"scale": [scale or 1.0]})
    return found


def merged(case: Case, models: dict[str, torch.Tensor]) -> torch.Tensor:
    names = list(case["experts"])
    if case["base"] is not None and case["base"] not in names:
        names.insert(0, case["base"])
    group = TensorGroup.from_tensors(
        [models[n].clone() for n in names],
        ids=names,
        base_index=names.index(case["base"]) if case["base"] else None,
    )
    (result,) = get(case["method"])([group], parameters=case["parameters"])
    return result


def main() -> None:
    out = Path(sys.argv[1])
    arrays: dict[str, np.ndarray] = {}
    tensors = sources()
    for name, models in tensors.items():
        for model, tensor in models.items():
            arrays[f"{name}/{model}"] = tensor.numpy()
    table = cases()
    for i, case in enumerate(table):
        arrays[f"case/{i}"] = merged(case, tensors[case["sources"]]).numpy()
    np.savez_compressed(out.with_suffix(".npz"), **arrays)
    out.with_suffix(".json").write_text("[\n" + ",\n".join(map(json.dumps, table)) + "\n]\n")
    print(f"{len(table)} cases")


if __name__ == "__main__":
    main()
