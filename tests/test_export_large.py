"""An export of the shape of a model with a billion parameters: its memory, and a real kill -9."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from evomerge.checkpoint import Checkpoint
from evomerge.errors import CheckpointError
from evomerge.export.shards import Item, _header

HIDDEN, LAYERS, MLP, VOCAB, HEADS, KV = 2048, 16, 8192, 128256, 32, 8
SHARD = 600 * 10**6
"""Bytes; the embedding alone takes 525 million."""


def shapes() -> dict[str, tuple[int, ...]]:
    """Those of Llama 3.2 1B: 1.24 billion parameters."""
    kv = HIDDEN // HEADS * KV
    found = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        found |= {f"{layer}.self_attn.{n}_proj.weight": (HIDDEN, HIDDEN) for n in "qo"}
        found |= {f"{layer}.self_attn.{n}_proj.weight": (kv, HIDDEN) for n in "kv"}
        found |= {f"{layer}.mlp.{n}_proj.weight": (MLP, HIDDEN) for n in ("gate", "up")}
        found[f"{layer}.mlp.down_proj.weight"] = (HIDDEN, MLP)
        found |= {f"{layer}.{n}_layernorm.weight": (HIDDEN,) for n in ("input", "post_attention")}
    return found


def write_model(folder: Path, seed: int) -> None:
    """A checkpoint of mostly zeros that takes no room on disk: only the first rows are written."""
    folder.mkdir(parents=True)
    items = [Item(name, shape, "BF16", merged=True) for name, shape in shapes().items()]
    header = _header(items)
    entries = json.loads(header[8:])
    entries.pop("__metadata__")
    rng = np.random.default_rng(seed)
    with (folder / "model.safetensors").open("wb") as f:
        f.write(header)
        f.truncate(len(header) + sum(i.n_bytes for i in items))
        for entry in entries.values():
            begin, end = entry["data_offsets"]
            values = rng.normal(0, 0.02, min(4096, (end - begin) // 2)).astype(np.float32)
            f.seek(len(header) + begin)
            f.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
        "hidden_size": HIDDEN, "intermediate_size": MLP, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV, "vocab_size": VOCAB,
        "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


_EXPORT = """
import sys, threading, time
import numpy as np
from pathlib import Path
from evomerge.experts import ExpertPool
from evomerge.export import export
from evomerge.methods import METHODS
from evomerge.recipe import LayerGroup, Recipe

folder, out, method = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
pool = ExpertPool.open(str(folder / "base"), {n: str(folder / n) for n in "ab"})
groups = (LayerGroup("all", tuple(t.name for t in pool.tensors)),)
coefficients = {p: np.full((1, 2), 0.5) for p in METHODS[method].parameters if p != "lambda"}
coefficients |= {p: np.ones((1, 1)) for p in METHODS[method].parameters if p == "lambda"}
recipe = Recipe(method, pool.refs, pool.base.ref, groups, coefficients)

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024

peak = before = anonymous()
def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
print("ready", flush=True)
export(recipe, out, pool=pool, max_shard_size=int(sys.argv[4]))
print(peak - before)
"""


def start(models: Path, out: Path, method: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _EXPORT, str(models), str(out), method, str(SHARD)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def billion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("billion")
    if shutil.disk_usage(folder).free < 12 * 10**9:
        pytest.skip("needs 12 GB of disk")
    for seed, name in enumerate(("base", "a", "b")):
        write_model(folder / name, seed)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["task_arithmetic"])
def test_a_billion_parameters(method: str, billion: Path, tmp_path: Path) -> None:
    """At most two shards of memory; killed, nothing looks finished; again, it completes."""
    out = tmp_path / "place" / "out"
    first = start(billion, out, method)
    assert first.stdout is not None
    assert first.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:  # until a shard is finished and another begun
        notes = {p.name.removesuffix(".done") for p in out.parent.glob(".out.*/*.done")}
        begun = {p.name for p in out.parent.glob(".out.*/*.safetensors")}
        if notes and begun - notes:
            break
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    (remains,) = out.parent.iterdir()
    assert remains.name.startswith(".out.")
    with pytest.raises(CheckpointError):
        Checkpoint.open("half", str(remains))
    kept = {p.name: p.stat().st_mtime_ns for p in remains.glob("*.safetensors")}

    second = start(billion, out, method)
    said, _ = second.communicate(timeout=600)
    assert second.returncode == 0
    peak = int(said.split()[1])
    print(f"{method}: {peak / 1e6:.0f} MB beyond the mapped inputs, shards of {SHARD / 1e6:.0f}")
    assert peak <= 2 * SHARD
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    after = {p.name: p.stat().st_mtime_ns for p in out.glob("*.safetensors")}
    assert all(after[name] == kept[name] for name in notes), (
        "finished shards are not written again"
    )

    whole = tmp_path / "whole"
    third = start(billion, whole, method)
    said, _ = third.communicate(timeout=600)
    assert int(said.split()[1]) <= 2 * SHARD
    for file in sorted(whole.iterdir()):
        same = subprocess.run(["cmp", "-s", str(file), str(out / file.name)])
        assert same.returncode == 0 or file.name == "README.md", file.name
    Checkpoint.open("whole", str(out))
    shutil.rmtree(out)
    shutil.rmtree(whole)
