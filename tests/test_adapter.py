"""LoRA adapters as experts: what PEFT itself makes of them, and clear refusals of the rest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.adapter import Adapter
from evomerge.errors import CheckpointError
from evomerge.experts import ExpertPool
from evomerge.groups import GroupSpec, build_groups
from evomerge.materialize import Merger
from evomerge.methods.low_rank import LowRank
from evomerge.recipe import Recipe

GOLDEN = Path(__file__).parent / "golden" / "lora"
CASES = ("llama", "mixed", "gpt2")


def open_case(case: str, *experts: str) -> ExpertPool:
    folder = GOLDEN / case
    return ExpertPool.open(str(folder / "base"), {n: str(folder / n) for n in experts})


def merged(pool: ExpertPool, weights: list[float]) -> dict[str, torch.Tensor]:
    spec = GroupSpec()
    groups = tuple(g.group for g in build_groups(spec, pool.tensors, pool.n_layers))
    assert pool.base is not None
    recipe = Recipe(
        "task_arithmetic", pool.refs, pool.base.ref, groups,
        {"weight": np.tile(weights, (len(groups), 1))},
    )  # fmt: skip
    out = {t.name: torch.full(t.shape, float("nan")) for t in pool.tensors}
    Merger(pool, recipe.method, {}).merge(recipe, out)
    return out


def assert_close(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(got) == set(expected)
    for name, tensor in expected.items():
        scale = float(tensor.abs().max())
        assert torch.allclose(got[name], tensor, rtol=1e-6, atol=1e-6 * scale), name


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("adapter", ["a", "b"])
def test_one_adapter_is_what_peft_merges_into_the_base(case: str, adapter: str) -> None:
    """Ranks and alphas by pattern, rsLoRA, embeddings, full copies, Conv1D."""
    expected = load_file(GOLDEN / case / f"{adapter}.safetensors")
    assert_close(merged(open_case(case, adapter), [1.0]), expected)
    base = load_file(GOLDEN / case / "base" / "model.safetensors")
    assert any(not torch.equal(base[n], t) for n, t in expected.items())


@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_two_adapters_equal_add_weighted_adapter(case: str) -> None:
    expected = load_file(GOLDEN / case / "ab.safetensors")
    assert_close(merged(open_case(case, "a", "b"), [0.7, 0.4]), expected)


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_factors_are_never_multiplied_out(
    method: str, dtype: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the method is linear, and equal to the dense merge; rounded once."""
    pool = open_case("llama", "a", "b")
    name = "model.layers.0.self_attn.q_proj.weight"
    base, experts = pool.sources(name)
    assert base is not None
    w = [0.7, 0.4]
    if method == "linear":
        exact = sum(x / sum(w) * e.double() for x, e in zip(w, experts, strict=True))
    else:
        delta = sum(x * (e.double() - base.double()) for x, e in zip(w, experts, strict=True))
        exact = base.double() + delta
    monkeypatch.setattr(Adapter, "tensor", None)
    merger = Merger(pool, method, {})
    out = torch.full(base.shape, float("nan"), dtype=dtype, device=device)
    merger.merge_tensor(name, {"weight": w}, out)
    eps = max(torch.finfo(dtype).eps, 2e-7)
    assert torch.allclose(out.double().cpu(), exact, rtol=eps, atol=2e-7)
    prepared = merger._prepared(name, out.device).tensors
    assert sum(isinstance(t, LowRank) for t in prepared) == 2


def test_other_methods_get_the_dense_tensor() -> None:
    pool = open_case("llama", "a", "b")
    name = "model.layers.0.self_attn.q_proj.weight"
    out = torch.empty(pool.sources(name)[1][0].shape)
    values = {"weight": [1.0, 1.0], "density": [0.5, 0.5], "lambda": [1.0]}
    merger = Merger(pool, "ties", {})
    merger.merge_tensor(name, values, out)
    prepared = merger._prepared(name, out.device).tensors
    assert not any(isinstance(t, LowRank) for t in prepared)
    assert torch.isfinite(out).all()


def test_an_adapter_beside_a_full_checkpoint(tmp_path: Path) -> None:
    full = Path(shutil.copytree(GOLDEN / "llama" / "base", tmp_path / "full"))
    shutil.copyfile(GOLDEN / "llama" / "b.safetensors", full / "model.safetensors")
    both = ExpertPool.open(
        str(GOLDEN / "llama" / "base"), {"a": str(GOLDEN / "llama" / "a"), "b": str(full)}
    )
    assert_close(merged(both, [0.7, 0.4]), load_file(GOLDEN / "llama" / "ab.safetensors"))


def test_identity_follows_adapter_scale_and_base(tmp_path: Path) -> None:
    (expert,) = open_case("llama", "a").experts
    assert isinstance(expert, Adapter)
    assert len(expert.content) == 64
    assert open_case("llama", "a").experts[0].content == expert.content
    other = edited(tmp_path, lora_alpha=9)
    pool = ExpertPool.open(str(GOLDEN / "llama" / "base"), {"a": str(other)})
    assert pool.experts[0].content != expert.content


def edited(tmp_path: Path, case: str = "llama", **changes: Any) -> Path:
    folder = Path(shutil.copytree(GOLDEN / case / "a", tmp_path / "edited"))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, "IA3 adapter; only LoRA"),
        ({"use_dora": True}, "use_dora .* not a low-rank sum"),
        ({"fan_in_fan_out": True}, "do not fit the base's"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base"),
        ({"layer_replication": [[0, 1]]}, "layers of the base repeated"),
        ({"lora_alpha": None}, "expected numbers for lora_alpha"),
        ({"lora_alpha": "big"}, "expected numbers for lora_alpha"),
        ({"lora_alpha": float("nan")}, "expected numbers for lora_alpha"),
        ({"alpha_pattern": ["x"]}, "alpha_pattern is"),
        ({"alpha_pattern": {"q_proj(": 3}}, "is not valid"),
    ],
)
def test_refusals(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        ExpertPool.open(str(GOLDEN / "llama" / "base"), {"a": str(edited(tmp_path, **changes))})


def test_an_adapter_needs_its_base(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"needs models\.base"):
        ExpertPool.open(None, {"a": str(GOLDEN / "llama" / "a")})
    with pytest.raises(CheckpointError, match="can be an expert, not the base"):
        ExpertPool.open(str(GOLDEN / "llama" / "a"), {"a": str(GOLDEN / "llama" / "b")})
    with pytest.raises(CheckpointError, match="trained on another base"):
        ExpertPool.open(str(GOLDEN / "gpt2" / "base"), {"a": str(GOLDEN / "llama" / "a")})


def test_damaged_adapters(tmp_path: Path) -> None:
    base = str(GOLDEN / "llama" / "base")
    folder = edited(tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    first = next(iter(tensors))
    save_file(
        {n: t for n, t in tensors.items() if n != first}, folder / "adapter_model.safetensors"
    )
    with pytest.raises(CheckpointError, match="only one of the two factors"):
        ExpertPool.open(base, {"a": str(folder)})
    tensors[first][0, 0] = float("nan")
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="NaN"):
        ExpertPool.open(base, {"a": str(folder)})
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="pickled adapters"):
        ExpertPool.open(base, {"a": str(folder)})
