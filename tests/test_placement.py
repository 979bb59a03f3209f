"""Every tensor of a checkpoint is found in the loaded model, whatever the loader did to it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.errors import CheckpointError
from evomerge.experts import ExpertPool, MergeTensor
from evomerge.materialize import LiveModel
from evomerge.placement import place
from tests import models


def pool_of(tensors: dict[str, torch.Tensor]) -> Any:
    """The two things that :func:`place` asks of a pool."""
    listed = [MergeTensor(n, tuple(t.shape), None, "mlp") for n, t in tensors.items()]
    return SimpleNamespace(tensors=listed, anchor=SimpleNamespace(tensor=tensors.__getitem__))


class Stacked(torch.nn.Module):
    """Two matrices of 3 x 4 in one parameter, as a loader stacks the experts of a mixture."""

    def __init__(self, *parts: torch.Tensor) -> None:
        super().__init__()
        self.stack = torch.nn.Parameter(torch.stack(parts))


PARTS = [torch.arange(12.0).view(3, 4), torch.arange(12.0, 24).view(3, 4)]


def test_blocks_of_a_stack_are_found_by_content() -> None:
    model = Stacked(*PARTS)
    found = place(model, pool_of({"w.1": PARTS[1], "w.0": PARTS[0]}))
    found["w.1"].fill_(-1)
    assert (model.stack[1] == -1).all()
    assert torch.equal(model.stack[0], PARTS[0])


def test_equal_blocks_fall_in_the_order_of_their_numbers() -> None:
    """An upcycled mixture starts with copies of one expert; the tenth comes after the second."""
    model = Stacked(*[PARTS[0]] * 3)
    found = place(model, pool_of({f"w.{i}": PARTS[0] for i in (10, 2, 1)}))
    for i, name in enumerate(("w.1", "w.2", "w.10")):
        found[name].fill_(float(i))
    assert model.stack[:, 0, 0].tolist() == [0, 1, 2]


def test_what_cannot_be_found_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"1 parameter.*'stack'.*cannot follow"):
        place(Stacked(*PARTS), pool_of({"w.0": PARTS[0], "w.1": PARTS[1] + 1}))
    with pytest.raises(CheckpointError, match=r"1 parameter.*'stack'"):  # half of it only
        place(Stacked(*PARTS), pool_of({"w.0": PARTS[0]}))
    with pytest.raises(CheckpointError, match=r"'stack'"):  # a transposed block is no block
        place(Stacked(*PARTS), pool_of({f"w.{i}": p.T.clone() for i, p in enumerate(PARTS)}))


def test_two_possible_places_are_refused() -> None:
    twins = torch.nn.ModuleDict({"a": Stacked(PARTS[0]), "b": Stacked(PARTS[0])})
    with pytest.raises(CheckpointError, match=r"equals parts of 'a.stack' and 'b.stack'"):
        place(twins, pool_of({"x": PARTS[0], "y": PARTS[0]}))


def test_parameters_without_a_tensor_are_named() -> None:
    model = torch.nn.ModuleDict({"up": torch.nn.Linear(2, 2), "down": torch.nn.Linear(2, 2)})
    weights = {n: p.data for n, p in model.named_parameters() if n.endswith("weight")}
    with pytest.raises(CheckpointError, match=r"2 parameter.*'up.bias'"):
        place(model, pool_of(weights))
    everything = {n: p.data for n, p in model.named_parameters()}
    assert set(place(model, pool_of(everything))) == set(everything)


def test_tensors_that_the_model_lacks_are_left_out() -> None:
    model = torch.nn.ModuleDict({"up": torch.nn.Linear(2, 2, bias=False)})
    model.register_buffer("mask", torch.ones(2, 2, dtype=torch.bool))
    names = ("up.weight", "rotary_emb.inv_freq", "mask")
    assert list(place(model, pool_of({n: torch.ones(2, 2) for n in names}))) == ["up.weight"]


def test_prefixes_differ_between_checkpoint_and_model() -> None:
    f = models.family("gpt2")
    pool = ExpertPool.open(str(f["base"]), {"a": str(f["expert_a"])})
    live = LiveModel(pool)
    bare = tuple(
        dataclasses.replace(t, name=t.name.removeprefix("transformer.")) for t in pool.tensors
    )
    found = place(live.model, dataclasses.replace(pool, tensors=bare))
    assert {t.data_ptr() for t in found.values()} == {t.data_ptr() for t in live.tensors.values()}


@pytest.mark.parametrize("arch", ["mixtral", "qwen3_moe"])
def test_an_upcycled_mixture_in_bfloat16(arch: str, tmp_path: Path) -> None:
    """All experts of the base equal, rounded while loading: each file tensor has its own place."""
    f = models.family(arch)
    base = Path(shutil.copytree(f["base"], tmp_path / "base"))
    tensors = load_file(base / "model.safetensors")
    for name in tensors:
        if ".experts." in name:
            head, _, tail = name.partition(".experts.")
            tensors[name] = tensors[f"{head}.experts.0.{tail.split('.', 1)[1]}"].clone()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    assert config["model_type"] == arch
    pool = ExpertPool.open(str(base), {"a": str(f["expert_a"])})
    live = LiveModel(pool, dtype="bfloat16")
    assert set(live.tensors) == {t.name for t in pool.tensors}
    for name, tensor in live.tensors.items():
        tensor.copy_(pool.experts[0].tensor(name))
    live.model.save_pretrained(tmp_path / "out")
    wanted = load_file(f["expert_a"] / "model.safetensors")
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        assert torch.equal(tensor, wanted[name].bfloat16()), name
