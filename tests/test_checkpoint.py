"""Checkpoints: found, checked, hashed, mapped; every damage has a clear message."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.cache import cache_folder
from evomerge.checkpoint import INDEX, Checkpoint, vocabulary
from evomerge.errors import CheckpointError
from tests import models

WEIGHTS = "model.safetensors"
NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of one's own, to be damaged."""
    return Path(shutil.copytree(models.family()["base"], tmp_path / "model"))


def split(folder: Path) -> list[str]:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    names = sorted(tensors)
    parts = (names[::2], names[1::2])
    for file, part in zip(files, parts, strict=True):
        save_file({n: tensors[n] for n in part}, folder / file, metadata={"format": "pt"})
    where = {n: f for f, part in zip(files, parts, strict=True) for n in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return files


def test_reads_headers_and_values(folder: Path) -> None:
    checkpoint = Checkpoint.open("base", str(folder))
    expected = load_file(folder / WEIGHTS)
    assert set(checkpoint.tensors) == set(expected)
    for name, tensor in expected.items():
        info = checkpoint.tensors[name]
        assert (info.shape, info.dtype) == (tuple(tensor.shape), "F32")
        assert torch.equal(checkpoint.tensor(name), tensor)


def test_tensors_are_views_of_one_mapping(folder: Path) -> None:
    checkpoint = Checkpoint.open("base", str(folder))
    first, second = checkpoint.tensor(NAME), checkpoint.tensor(NAME)
    assert first.data_ptr() == second.data_ptr()
    mapped = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(folder / WEIGHTS)):
            start, stop = (int(x, 16) for x in line.split()[0].split("-"))
            mapped.append(start <= first.data_ptr() < stop)
    assert any(mapped), "the tensor does not lie in the mapped file"


def test_shards(folder: Path) -> None:
    whole = Checkpoint.open("base", str(folder))
    want = {n: whole.tensor(n).clone() for n in whole.tensors}
    files = split(folder)
    checkpoint = Checkpoint.open("base", str(folder))
    assert all(torch.equal(checkpoint.tensor(n), t) for n, t in want.items())
    (folder / files[1]).unlink()
    with pytest.raises(CheckpointError, match=r"1 of 2 shards are missing.*00002-of-00002"):
        Checkpoint.open("base", str(folder))


def test_pickles_without_its_open_files(folder: Path) -> None:
    checkpoint = Checkpoint.open("base", str(folder))
    checkpoint.tensor(NAME)
    again = pickle.loads(pickle.dumps(checkpoint))
    assert torch.equal(again.tensor(NAME), checkpoint.tensor(NAME))


def test_content_depends_on_weights_alone(folder: Path, tmp_path: Path) -> None:
    first = Checkpoint.open("a", str(folder)).audited().content
    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    (moved / "config.json").write_text((moved / "config.json").read_text() + "\n")
    assert Checkpoint.open("b", str(moved)).audited().content == first
    tensors = load_file(moved / WEIGHTS)
    tensors[NAME][0, 0] += 1
    save_file(tensors, moved / WEIGHTS)
    assert Checkpoint.open("b", str(moved)).audited().content != first


def test_audit_reads_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache"
    first = Checkpoint.open("a", str(folder)).audited().content
    monkeypatch.setattr(Checkpoint, "_non_finite", lambda *_: pytest.fail("read again"))
    assert Checkpoint.open("a", str(folder)).audited().content == first


def test_audit_works_without_a_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", "/dev/null/nowhere")
    assert len(Checkpoint.open("a", str(folder)).audited().content) == 64


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf(folder: Path, bad: float) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors[NAME][3, 1] = bad
    save_file(tensors, folder / WEIGHTS)
    checkpoint = Checkpoint.open("math", str(folder))
    for _ in range(2):  # found again from the cached note
        with pytest.raises(CheckpointError, match=rf"math: 1 tensor.*NaN.*{NAME}"):
            checkpoint.audited()


def test_truncated(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-100])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        Checkpoint.open("base", str(folder))


@pytest.mark.parametrize(
    "data",
    [b"", b"\x01", b"\xff" * 64, b"\x08" + b"\0" * 7 + b"not json", b"\x01" + b"\0" * 7 + b"3"],
)
def test_not_safetensors(folder: Path, data: bytes) -> None:
    (folder / WEIGHTS).write_bytes(data)
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        Checkpoint.open("base", str(folder))


def test_pickled_weights_only(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"only pickled weights.*save_pretrained"):
        Checkpoint.open("base", str(folder))


def test_lora(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"LoRA adapter.*can be an expert"):
        Checkpoint.open("base", str(folder))


def test_lora_without_a_model_configuration(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.safetensors")
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(CheckpointError, match="LoRA adapter"):
        Checkpoint.open("base", str(folder))


def test_no_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"no model.safetensors"):
        Checkpoint.open("base", str(folder))


@pytest.mark.parametrize(
    ("text", "message"), [(None, "no config.json"), ("{", "not valid JSON"), ("[]", "no mapping")]
)
def test_configuration(folder: Path, text: str | None, message: str) -> None:
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open("base", str(folder))


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": 3}', "{"])
def test_damaged_index(folder: Path, text: str) -> None:
    (folder / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match="cannot be read"):
        Checkpoint.open("base", str(folder))


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "nowhere", "~/no/such"])
def test_no_such_folder(source: str) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        Checkpoint.open("base", source)


@pytest.mark.parametrize("source", ["org/model", "org/model@v1"])
def test_hub(source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def download(repo: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.update(repo=repo, revision=revision, patterns=allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert Checkpoint.open("base", source).folder == folder
    assert asked["repo"] == "org/model"
    assert asked["revision"] == (None if source == "org/model" else "v1")
    assert not any(p.endswith(".bin") for p in asked["patterns"])

    def refuse(*_: object, **__: object) -> str:
        raise OSError("offline\nmore lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=r"could not be had from the hub \(offline\)"):
        Checkpoint.open("base", source)


def test_vocabulary(folder: Path) -> None:
    tokens = vocabulary(folder)
    assert tokens is not None
    assert tokens[models.EOS] == 0
    (folder / "tokenizer.json").write_text("{}")
    assert vocabulary(folder) is None
