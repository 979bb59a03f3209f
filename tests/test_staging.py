"""A pool on another machine: other roots, a copy on its own disk, two workers at once."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.adapter import Adapter
from evomerge.errors import CheckpointError, ConfigError
from evomerge.experts import ExpertPool
from evomerge.score_cache import side_files_hash
from evomerge.staging import ROOTS, pool_here
from tests.diagnose import variants

LORA = Path(__file__).parent / "golden" / "lora"


@pytest.fixture
def shared(family, tmp_path) -> Path:
    """The folder that the driver sees: a base and an expert, of this test alone."""
    for name in ("base", "expert_a"):
        shutil.copytree(family[name], tmp_path / "shared" / name)
    return tmp_path / "shared"


@pytest.fixture
def pool(shared) -> ExpertPool:
    return ExpertPool.open(str(shared / "base"), {"a": str(shared / "expert_a")})


def edit(folder: Path, change: float = 1.0) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[next(iter(tensors))].view(-1)[0] += change
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def same(a: ExpertPool, b: ExpertPool) -> bool:
    pairs = zip((a.base, *a.experts), (b.base, *b.experts), strict=True)
    return all(
        x.content == y.content and all(torch.equal(x.tensor(n), y.tensor(n)) for n in x.tensors)
        for x, y in pairs
    )


def test_the_drivers_own_folders_are_taken_as_they_are(pool) -> None:
    assert same(pool_here(pool), pool)
    assert pool_here(pool).base.folder == pool.base.folder


@pytest.mark.parametrize("how", ["paths", "environment"])
def test_found_under_another_root(pool, shared, tmp_path, monkeypatch, how) -> None:
    other = shared.rename(tmp_path / "mnt")
    roots = {str(shared): str(other), "/elsewhere": "/nowhere"}
    if how == "environment":
        monkeypatch.setenv(ROOTS, ":".join(f"{a}={b}" for a, b in roots.items()))
        roots = {}
    here = pool_here(pool, paths=roots)
    assert here.base.folder == other / "base"
    reopened = ExpertPool.open(str(other / "base"), {"a": str(other / "expert_a")})
    assert same(here, reopened)
    assert here.base.content == pool.base.content


def test_what_is_not_there_or_is_another_model_is_refused(pool, shared, tmp_path) -> None:
    other = tmp_path / "mnt"
    shutil.copytree(shared, other)
    paths = {str(shared): str(other)}
    edit(other / "expert_a")
    with pytest.raises(CheckpointError, match=r"a: expected the driver's weights, sha256 .* got"):
        pool_here(pool, paths=paths)
    save_file({"w": torch.zeros(2)}, other / "expert_a" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"a: .* holds other tensors than the driver's"):
        pool_here(pool, paths=paths)
    (other / "expert_a" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"a: .* has no model\.safetensors"):
        pool_here(pool, paths=paths)
    shutil.rmtree(other)
    shutil.rmtree(shared)
    with pytest.raises(
        CheckpointError, match=f"base: .* has none of .*executor.paths, or {ROOTS}"
    ):
        pool_here(pool, paths=paths)


def test_roots_that_cannot_be_read(pool, monkeypatch) -> None:
    monkeypatch.setenv(ROOTS, "/shared")
    with pytest.raises(ConfigError, match=f"{ROOTS}: expected ROOT=ROOT pairs"):
        pool_here(pool)


def test_a_copy_is_the_checkpoint_and_is_made_once(pool, tmp_path) -> None:
    stage = tmp_path / "disk" / "models"
    here = pool_here(pool, stage=str(stage))
    assert same(here, pool)
    for moved, own in ((here.base, pool.base), (here.experts[0], pool.experts[0])):
        assert moved.folder.parent == stage
        assert side_files_hash(moved.folder) == side_files_hash(own.folder)
    times = {p: p.stat().st_mtime_ns for p in stage.rglob("*.safetensors")}
    assert len(times) == 2
    assert same(pool_here(pool, stage=str(stage)), pool)
    assert {p: p.stat().st_mtime_ns for p in stage.rglob("*.safetensors")} == times


def test_an_adapter_is_copied_with_its_base(tmp_path) -> None:
    case = min(p for p in LORA.iterdir() if p.is_dir())
    pool = ExpertPool.open(str(case / "base"), {"a": str(case / "a")})
    here = pool_here(pool, stage=str(tmp_path))
    assert same(here, pool)
    adapter = here.experts[0]
    assert isinstance(adapter, Adapter)
    assert adapter.base is here.base
    assert adapter.own.folder.parent == here.base.folder.parent == tmp_path


def test_a_full_disk_is_noticed_before_anything_is_written(pool, tmp_path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"base: a copy in executor\.stage takes .* GB free"):
        pool_here(pool, stage=str(tmp_path / "disk"))
    assert not [p for p in (tmp_path / "disk").rglob("*") if p.is_file() and p.stat().st_size]


def test_a_folder_that_cannot_be_written(pool, tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"executor\.stage: .* cannot be written"):
        pool_here(pool, stage=str(tmp_path / "file" / "stage"))


def test_a_copy_goes_on_where_it_ended_and_starts_anew_where_it_is_damaged(pool, tmp_path) -> None:
    source = pool.base.folder / "model.safetensors"
    copy = tmp_path / pool.base.content[:32]
    copy.mkdir()
    part = copy / "model.safetensors.part"
    half = source.read_bytes()[: source.stat().st_size // 2]
    part.write_bytes(half)
    inode = part.stat().st_ino
    assert same(pool_here(pool, stage=str(tmp_path)), pool)
    assert (copy / "model.safetensors").stat().st_ino == inode, "the half was kept"
    shutil.rmtree(copy)
    copy.mkdir()
    part.write_bytes(bytes(len(half)))
    assert same(pool_here(pool, stage=str(tmp_path)), pool)


def test_a_source_that_changed_is_no_copy(pool, shared, tmp_path) -> None:
    edit(shared / "base")
    with pytest.raises(CheckpointError, match="base: expected the driver's weights"):
        pool_here(pool, stage=str(tmp_path / "stage"))
    assert not list((tmp_path / "stage").rglob("*.safetensors"))


RACE = """
import json, shutil, sys, time
from pathlib import Path
from evomerge import staging
from evomerge.experts import ExpertPool
base, expert, stage, name = sys.argv[1:]
pool = ExpertPool.open(base, {"a": expert})
copied = []
original = staging._copy
def copy(path, to):
    copied.append(to.name)
    Path(stage, "..", f"{name}.copies").resolve().touch()
    while name == "victim":
        time.sleep(0.05)
    original(path, to)
staging._copy = copy
staging.pool_here(pool, stage=stage)
print(json.dumps(copied))
"""


def test_of_two_workers_one_copies_and_a_killed_one_holds_nobody_up(
    pool, shared, tmp_path
) -> None:
    def start(name: str) -> subprocess.Popen:
        arguments = [str(shared / "base"), str(shared / "expert_a"), str(tmp_path / "stage"), name]
        return subprocess.Popen(
            [sys.executable, "-c", RACE, *arguments], stdout=subprocess.PIPE, text=True
        )

    victim = start("victim")
    end = time.monotonic() + 120
    while not (tmp_path / "victim.copies").exists():
        assert victim.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    others = [start("one"), start("other")]
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    copied = [json.loads(p.communicate(timeout=120)[0]) for p in others]
    assert all(p.returncode == 0 for p in others)
    weights = [f for c in copied for f in c if f.endswith(".safetensors")]
    assert len(weights) == 2, "each checkpoint once"
    assert same(pool_here(pool, stage=str(tmp_path / "stage")), pool)


def test_a_hub_model_is_looked_for_at_the_drivers_revision(pool, tmp_path, monkeypatch) -> None:
    """The node has a hub cache of its own, at another place."""
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"

    def cached(root: Path) -> Path:
        repo = root / "models--org--base"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text(commit)
        shutil.copytree(pool.base.folder, repo / "snapshots" / commit)
        return repo / "snapshots" / commit

    away, here = cached(tmp_path / "driver"), cached(tmp_path / "node")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "node"))
    base = dataclasses.replace(pool.base, source="org/base", folder=away)
    shutil.rmtree(tmp_path / "driver")
    found = pool_here(dataclasses.replace(pool, base=base))
    assert found.base.folder == here
    assert found.base.content == pool.base.content


def test_models_read_in_anothers_vocabulary_move_as_they_lie(shared, family, tmp_path) -> None:
    chat = variants.add_tokens(family["expert_b"], shared / "chat", n=3, rows=5)
    experts = {"a": str(shared / "expert_a"), "chat": str(chat)}
    pool = ExpertPool.open(str(shared / "base"), experts, tokenizer="chat")
    moved = pool_here(pool, stage=str(tmp_path / "disk"))
    assert same(moved, pool)
    for model in (moved.base, *moved.experts, moved.anchor):
        assert model.folder.is_relative_to(tmp_path / "disk")
