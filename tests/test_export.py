"""Exports load anywhere, hold exactly the weights that were scored, and are whole or not there."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from evomerge.card import ModelCard, Result, render_card
from evomerge.checkpoint import INDEX, Checkpoint
from evomerge.errors import CheckpointError, ConfigError, ExportError
from evomerge.experts import ExpertPool
from evomerge.export import export, pool_of, shards, write
from evomerge.materialize import LiveModel, Merger
from evomerge.recipe import ModelRef, Recipe
from tests import models
from tests.test_materialize import CASES, open_family, random_recipe


@pytest.fixture
def pool() -> ExpertPool:
    return open_family()


@pytest.fixture
def recipe(pool: ExpertPool) -> Recipe:
    return random_recipe(pool)


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# ------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("rounding", ["nearest", "dither"])
def test_rounding_is_part_of_the_recipe(rounding: str, tmp_path: Path) -> None:
    """What is exported is what was scored, and it says how much of the merge is realised."""
    from transformers import AutoModelForCausalLM

    folders = models.build_family(tmp_path / "near", dtype="bfloat16", noise=3e-4)
    pool = ExpertPool.open(str(folders["base"]), {"a": str(folders["expert_a"])})
    recipe = dataclasses.replace(random_recipe(pool), fixed={"rounding": rounding})
    weights = np.full_like(recipe.coefficients["weight"], 0.4)
    recipe = dataclasses.replace(recipe, coefficients={"weight": weights})
    said: list[str] = []
    out = export(recipe, tmp_path / "out", pool=pool, on_rounded=said.append)
    live = LiveModel(pool, "cpu")
    Merger(pool, recipe.method, recipe.fixed).merge(recipe, live.tensors)
    got = AutoModelForCausalLM.from_pretrained(out, dtype="auto").state_dict()
    for name, tensor in live.model.state_dict().items():
        assert torch.equal(tensor, got[name]), name
    (sentence,) = said
    assert sentence.startswith(f"Rounded to bfloat16 ({rounding}): ")
    share = float(sentence.split(": ")[1].split()[0])
    assert (abs(share - 1) < 0.05) == (rounding == "dither")
    assert ("space.fixed.rounding=dither" in sentence) == (rounding == "nearest")
    card = (out / "README.md").read_text()
    assert sentence in card
    assert ("dither (fixed.rounding)" in card) == (rounding == "dither"), "no mergekit file"
    assert (out / "mergekit.yaml").exists() == (rounding == "nearest")
    assert Recipe.from_yaml((out / "recipe.yaml").read_text()).fixed == {"rounding": rounding}


def test_wide_exports_have_nothing_to_say_of_rounding(recipe: Recipe, tmp_path: Path) -> None:
    said: list[str] = []
    export(recipe, tmp_path / "out", on_rounded=said.append)
    assert said == []


@pytest.mark.parametrize(("arch", "tie"), CASES)
@pytest.mark.parametrize(
    ("stored", "dtype"),
    [("float32", "auto"), ("bfloat16", "auto"), ("float32", "bfloat16"), ("bfloat16", "float32")],
)
@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_equals_the_live_model_bit_by_bit(
    arch: str, tie: bool, stored: str, dtype: str, method: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    pool = open_family(arch, tie, stored)
    recipe = random_recipe(pool, method)
    out = export(recipe, tmp_path / "out", pool=pool, dtype=dtype)

    live = LiveModel(pool, "cpu", dtype)
    Merger(pool, method, {}).merge(recipe, live.tensors)
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    want, got = live.model.state_dict(), loaded.state_dict()
    assert set(want) == set(got)
    for name, tensor in want.items():
        assert tensor.dtype == got[name].dtype, name
        assert torch.equal(tensor, got[name]), name
    assert loaded.dtype == getattr(torch, stored if dtype == "auto" else dtype)

    text = "merge the experts"
    tokens = AutoTokenizer.from_pretrained(out)(text)["input_ids"]
    assert tokens == live.tokenizer(text)["input_ids"]
    with torch.no_grad():
        ids = torch.tensor([tokens])
        assert torch.equal(live.model(ids).logits, loaded(ids).logits)


@pytest.mark.parametrize("size", [20_000, "20KB", 1, "1MB"])
def test_shards(size: int | str, pool: ExpertPool, recipe: Recipe, tmp_path: Path) -> None:
    whole = load_file(export(recipe, tmp_path / "whole", pool=pool) / "model.safetensors")
    out = export(recipe, tmp_path / "out", pool=pool, max_shard_size=size)
    files = sorted(out.glob("*.safetensors"))
    if size == "1MB":
        assert [f.name for f in files] == ["model.safetensors"]
        return
    index = json.loads((out / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())
    assert {out / f for f in index["weight_map"].values()} == set(files)
    for file in files:
        tensors = load_file(file)
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= 20_000
        for name, tensor in tensors.items():
            assert torch.equal(tensor, whole.pop(name))
    assert not whole
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(out)


@pytest.mark.parametrize("size", ["", "5 gigs", "-1", "0", "GB"])
def test_odd_shard_sizes(size: str, recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max_shard_size"):
        export(recipe, tmp_path / "out", max_shard_size=size)


def test_files_beside_the_weights(tmp_path: Path) -> None:
    f = models.family()
    base = Path(shutil.copytree(f["base"], tmp_path / "base"))
    wanted = {"chat_template.jinja": "{{ x }}", "additional_chat_templates/tool.jinja": "{{ y }}"}
    wanted |= {"special_tokens_map.json": "{}", "vocab.json": "{}", "LICENSE": "free"}
    junk = [
        "README.md",
        "pytorch_model.bin",
        "optimizer.pt",
        "training_args.bin",
        "trainer.json",
        "modeling_custom.py",
        "model.safetensors.bak",
    ]
    for name, text in {**wanted, **dict.fromkeys(junk, "junk")}.items():
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(text)
    pool = ExpertPool.open(str(base), {"a": str(f["expert_a"])})
    out = export(random_recipe(pool), tmp_path / "out", pool=pool)
    for name, text in wanted.items():
        assert (out / name).read_text() == text
    assert {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "recipe.yaml",
        "mergekit.yaml",
        "README.md",
    } <= set(left(out))
    assert not set(junk) - {"README.md"} & set(left(out))
    assert (out / "README.md").read_text() != "junk"


def test_index_buffers_come_from_the_anchor_and_tied_heads_are_left_out(tmp_path: Path) -> None:
    f = models.family()
    folders = [Path(shutil.copytree(f[n], tmp_path / n)) for n in ("base", "expert_a")]
    for i, folder in enumerate(folders):
        tensors = load_file(folder / "model.safetensors")
        tensors["ids"] = torch.tensor([3 + i, 4, 5])
        tensors["mask"] = torch.tensor([True, False, bool(i)])
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    pool = ExpertPool.open(str(folders[0]), {"a": str(folders[1])})
    out = export(random_recipe(pool), tmp_path / "out", pool=pool, dtype="bfloat16")
    tensors = load_file(out / "model.safetensors")
    assert tensors["ids"].tolist() == [3, 4, 5]
    assert tensors["mask"].tolist() == [True, False, False]
    assert "lm_head.weight" not in tensors


def test_configuration_names_the_new_dtype(
    pool: ExpertPool, recipe: Recipe, tmp_path: Path
) -> None:
    same = export(recipe, tmp_path / "a", pool=pool)
    assert json.loads((same / "config.json").read_text()) == pool.anchor.config
    other = export(recipe, tmp_path / "b", pool=pool, dtype="bfloat16")
    config = json.loads((other / "config.json").read_text())
    assert config == {**pool.anchor.config, "dtype": "bfloat16"}
    with pytest.raises(ConfigError, match="dtype must be"):
        export(recipe, tmp_path / "c", pool=pool, dtype="int8")


def test_recipe_travels_with_it(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths and unknown hashes are settled, so the file works from any folder."""
    folder = models.family()["base"].parent
    monkeypatch.chdir(folder)
    blank = dataclasses.replace(
        recipe,
        models=tuple(ModelRef(m.name, Path(m.path).name) for m in recipe.models),
        base=ModelRef("base", "base"),
    )
    out = export(blank, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    again = Recipe.from_yaml((out / "recipe.yaml").read_text())
    assert again.id == recipe.id
    assert all(Path(m.path).is_absolute() for m in again.models)
    twice = export(again, tmp_path / "twice")
    assert (twice / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


# --------------------------------------------------------------------------- the destination


def test_same_export_is_kept(pool: ExpertPool, recipe: Recipe, tmp_path: Path) -> None:
    out = export(recipe, tmp_path / "out", pool=pool)
    (out / "note.txt").write_text("mine")
    assert export(recipe, out, pool=pool) == out
    assert (out / "note.txt").exists()
    with pytest.raises(ExportError, match=r"not empty.*overwrit"):
        export(recipe, out, pool=pool, dtype="bfloat16")
    with pytest.raises(ExportError, match="not empty"):
        export(random_recipe(pool, seed=1), out, pool=pool)
    export(random_recipe(pool, seed=1), out, pool=pool, overwrite=True)
    assert not (out / "note.txt").exists()
    assert left(tmp_path) == ["out"]


def test_damaged_export_is_not_taken_for_a_whole_one(
    pool: ExpertPool, recipe: Recipe, tmp_path: Path
) -> None:
    out = export(recipe, tmp_path / "out", pool=pool)
    data = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").write_bytes(data[:-1])
    with pytest.raises(ExportError, match="not empty"):
        export(recipe, out, pool=pool)


def test_taken_places(pool: ExpertPool, recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ExportError, match="is no folder"):
        export(recipe, tmp_path / "file", pool=pool)
    with pytest.raises(ExportError, match="could not write"):
        export(recipe, tmp_path / "file" / "out", pool=pool)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    with pytest.raises(ExportError, match="not empty"):
        export(recipe, tmp_path / "full", pool=pool)
    assert left(tmp_path / "full") == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    export(recipe, tmp_path / "empty", pool=pool)
    export(recipe, tmp_path / "new" / "deeper" / "out", pool=pool)


# --------------------------------------------------------------------------- failures


def fail_after(monkeypatch: pytest.MonkeyPatch, n: int, error: BaseException) -> None:
    """The n-th tensor cannot be written."""
    calls = iter(range(1000))
    raw = shards._raw

    def stub(tensor: torch.Tensor) -> memoryview:
        if next(calls) >= n:
            raise error
        return raw(tensor)

    monkeypatch.setattr(shards, "_raw", stub)


@pytest.mark.parametrize("n", [0, 5])
def test_full_disk(
    n: int, pool: ExpertPool, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_after(monkeypatch, n, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(ExportError, match=r"No space left.*needs .*bytes.*are free"):
        export(recipe, tmp_path / "a" / "b" / "out", pool=pool)
    assert left(tmp_path) == []


def test_full_disk_keeps_what_was_to_be_replaced(
    pool: ExpertPool, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = export(recipe, tmp_path / "out", pool=pool)
    before = (out / "model.safetensors").read_bytes()
    fail_after(monkeypatch, 3, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(ExportError):
        export(random_recipe(pool, seed=1), out, pool=pool, overwrite=True)
    assert (out / "model.safetensors").read_bytes() == before
    assert left(tmp_path) == ["out"]


def test_a_limit_of_the_system(pool: ExpertPool, recipe: Recipe, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(ExportError, match="File too large"):
            export(recipe, tmp_path / "out", pool=pool)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert left(tmp_path) == []


def test_a_full_disk_for_real(
    pool: ExpertPool, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        with pytest.raises(ExportError, match="not enough room"):
            export(recipe, disk / "out", pool=pool)
        usage = namedtuple("usage", "total used free")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 40, 0, 1 << 40))
        with pytest.raises(ExportError, match="No space left"):
            export(recipe, disk / "out", pool=pool)
        assert left(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_too_little_room_is_seen_before_anything_is_written(
    pool: ExpertPool, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6 - 1000, 1000))
    monkeypatch.setattr(write, "write_weights", lambda *_: pytest.fail("wrote"))
    with pytest.raises(ExportError, match=r"not enough room.*needs .*\(1000 bytes\) are free"):
        export(recipe, tmp_path / "out", pool=pool)
    assert left(tmp_path) == []


def test_an_interrupt_cleans_up(
    pool: ExpertPool, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_after(monkeypatch, 3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        export(recipe, tmp_path / "out", pool=pool)
    assert left(tmp_path) == []


_KILLED = """
import os, signal, sys
from pathlib import Path
from evomerge.export import export, shards
from evomerge.recipe import Recipe
raw, calls = shards._raw, iter(range(1000))
def stub(tensor):
    if next(calls) == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return raw(tensor)
shards._raw = stub
recipe = Recipe.from_yaml(Path(sys.argv[1]).read_text())
export(recipe, Path(sys.argv[2]), max_shard_size=20_000, dtype=sys.argv[3])
"""


@pytest.fixture(scope="module")
def remains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The hidden folder of an export that was killed at its seventh tensor."""
    folder = tmp_path_factory.mktemp("killed")
    file, place = folder / "recipe.yaml", folder / "place"
    file.write_text(random_recipe(open_family()).to_yaml())
    place.mkdir()
    command = [sys.executable, "-c", _KILLED, str(file), str(place / "out"), "bfloat16"]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    (found,) = place.iterdir()
    assert found.name.startswith(".out.")
    return found


@pytest.fixture
def killed(remains: Path, tmp_path: Path) -> Path:
    """The same in a place of this test's own."""
    return Path(shutil.copytree(remains, tmp_path / "place" / remains.name))


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_killed_in_the_middle(
    killed: Path, pool: ExpertPool, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks unfinished; run again it keeps whole shards and writes what is missing, no more."""
    with pytest.raises(CheckpointError):
        Checkpoint.open("half", str(killed))
    written = {p.name for p in killed.glob("*.safetensors")}
    finished = {p.name.removesuffix(".done") for p in killed.glob("*.done")}
    assert finished
    assert len(written - finished) == 1, "the one that was being written"
    place = killed.parent
    other = place / ".other.123.evomerge-tmp"
    other.mkdir()
    again: list[str] = []
    write_shard = shards._write_shard

    def seen(path: Path, *rest: object) -> object:
        again.append(path.name)
        return write_shard(path, *rest)

    monkeypatch.setattr(shards, "_write_shard", seen)
    said: list[str] = []
    options = {"pool": pool, "max_shard_size": 20_000, "dtype": "bfloat16"}
    out = export(recipe, place / "out", on_rounded=said.append, **options)
    assert again
    assert not finished & set(again)
    assert left(place) == [other.name, "out"]
    monkeypatch.undo()
    fresh: list[str] = []
    whole = export(recipe, place / "whole" / "out", on_rounded=fresh.append, **options)
    assert files(out) == files(whole)
    assert said == fresh, "what the kept shards say of the rounding is kept too"


def test_a_damaged_shard_is_written_again(killed: Path, pool: ExpertPool, recipe: Recipe) -> None:
    note = min(killed.glob("*.done"))
    shard = killed / note.name.removesuffix(".done")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    options = {"pool": pool, "max_shard_size": 20_000, "dtype": "bfloat16"}
    out = export(recipe, killed.parent / "out", **options)
    assert files(out) == files(export(recipe, killed.parent / "w" / "out", **options))


@pytest.mark.parametrize("change", ["dtype", "size", "recipe"])
def test_another_export_takes_nothing_from_a_killed_one(
    change: str, killed: Path, pool: ExpertPool, recipe: Recipe
) -> None:
    out = killed.parent / "out"
    options = {"pool": pool, "max_shard_size": 20_000, "dtype": "bfloat16"}
    if change == "recipe":
        recipe = random_recipe(pool, seed=1)
    options |= {"dtype": "float32"} if change == "dtype" else {}
    options |= {"max_shard_size": 30_000} if change == "size" else {}
    export(recipe, out, **options)
    assert files(out) == files(export(recipe, killed.parent / "w" / "out", **options))
    assert left(killed.parent) == ["out", "w"]


def test_a_live_export_is_left_alone(pool: ExpertPool, recipe: Recipe, tmp_path: Path) -> None:
    alive = tmp_path / ".out.0123.evomerge-tmp"
    alive.mkdir()
    lock = os.open(alive, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        export(recipe, tmp_path / "out", pool=pool)
        assert left(tmp_path) == [alive.name, "out"]
    finally:
        os.close(lock)


def test_two_exports_of_the_same_at_once(
    pool: ExpertPool, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second waits for the first and finds its work done."""
    writing = threading.Event()
    written: list[str] = []
    write_shard = shards._write_shard

    def slow(path: Path, *rest: object) -> object:
        written.append(path.name)
        writing.set()
        time.sleep(0.2)
        return write_shard(path, *rest)

    monkeypatch.setattr(shards, "_write_shard", slow)
    first = threading.Thread(target=export, args=(recipe, tmp_path / "out"), kwargs={"pool": pool})
    first.start()
    assert writing.wait(30)
    assert export(recipe, tmp_path / "out", pool=pool) == tmp_path / "out"
    first.join()
    assert written == ["model.safetensors"]
    assert left(tmp_path) == ["out"]


def test_file_systems_without_locks(
    pool: ExpertPool, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    dead = tmp_path / ".out.0123.evomerge-tmp"
    dead.mkdir()
    export(recipe, tmp_path / "out", pool=pool)
    assert "model.safetensors" in left(tmp_path / "out")
    assert left(tmp_path) == [dead.name, "out"], "nobody can tell whether it is dead"


# --------------------------------------------------------------------------- the models


def test_pool_of_checks_contents(recipe: Recipe, tmp_path: Path) -> None:
    assert pool_of(recipe).refs == recipe.models
    moved = Path(shutil.copytree(recipe.models[0].path, tmp_path / "moved"))
    elsewhere = dataclasses.replace(recipe.models[0], path=str(moved))
    assert pool_of(dataclasses.replace(recipe, models=(elsewhere, recipe.models[1])))
    tensors = load_file(moved / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, moved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="other weights for 'a'"):
        pool_of(dataclasses.replace(recipe, models=(elsewhere, recipe.models[1])))
    gone = dataclasses.replace(recipe.models[0], path=str(tmp_path / "gone"))
    with pytest.raises(CheckpointError, match="is not a folder"):
        pool_of(dataclasses.replace(recipe, models=(gone, recipe.models[1])))


# --------------------------------------------------------------------------- the card


def front_matter(text: str) -> dict[str, object]:
    data = yaml.safe_load(text.split("---\n")[1])
    assert isinstance(data, dict)
    return data


def test_card(pool: ExpertPool, recipe: Recipe, tmp_path: Path) -> None:
    card = ModelCard(
        title="Zoo merge",
        text="Found by a search.",
        license="apache-2.0",
        results=(
            Result("gsm8k", "exact_match", 0.5123, 0.011, 200, others={"base": 0.31}),
            Result("wiki", "bits|byte", 1.25, higher_is_better=False, split="select"),
        ),
        commands=("lm_eval --model_args pretrained={model} --tasks gsm8k",),
    )
    out = export(recipe, tmp_path / "out", pool=pool, card=card)
    text = (out / "README.md").read_text()
    data = front_matter(text)
    assert data["tags"] == ["merge", "evomerge"]
    assert data["library_name"] == "transformers"
    assert "base_model" not in data, "the hub refuses local folders"
    assert "| gsm8k | exact_match | higher | **0.5123** ± 0.011 | 0.31 | 200 (test) |" in text
    assert "| wiki | bits\\|byte | lower | **1.25** |  | select |" in text
    assert "pretrained=MERGED" in text
    assert "evomerge merge recipe.yaml --out MERGED" in text
    assert "mergekit-yaml mergekit.yaml" in text
    assert recipe.id in text
    from huggingface_hub import ModelCard as HubCard

    hub = HubCard(text).data
    assert hub.license == "apache-2.0"
    assert [r.metric_value for r in hub.eval_results] == [0.5123, 1.25]


def test_card_of_hub_models(recipe: Recipe) -> None:
    hub = dataclasses.replace(
        recipe,
        base=ModelRef("base", "org/base"),
        models=(ModelRef("a", "org/a@v1"), ModelRef("b", "/local/b")),
    )
    data = front_matter(render_card(hub, ModelCard(), "out"))
    assert data["base_model"] == ["org/base", "org/a"]
    assert data["base_model_relation"] == "merge"


def test_card_says_why_there_is_no_mergekit_file(
    pool: ExpertPool, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> str:
        raise ConfigError("mergekit cannot do that.")

    monkeypatch.setattr(write, "to_mergekit", refuse)
    out = export(recipe, tmp_path / "out", pool=pool)
    assert not (out / "mergekit.yaml").exists()
    text = (out / "README.md").read_text()
    assert "There is no `mergekit.yaml`: mergekit cannot do that." in text
    assert "mergekit-yaml mergekit.yaml" not in text


def test_a_card_names_no_folder_of_this_machine(
    pool: ExpertPool, recipe: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "samples-test.json").write_text("{}")
    command = (
        f"lm_eval --model_args pretrained={{model}},peft={tmp_path}/x --include_path "
        f'{tmp_path}/tasks --samples {tmp_path}/samples-test.json --gen_kwargs \'{{"a": "b/c"}}\''
    )
    card = ModelCard(commands=(command,), files=(tmp_path / "samples-test.json",))
    out = export(recipe, tmp_path / "out", pool=pool, card=card)
    text = (out / "README.md").read_text()
    assert str(tmp_path) not in text
    assert str(models.family()["base"].parent) not in text
    assert "--include_path tasks --samples samples-test.json" in text
    assert "pretrained=MERGED,peft=x" in text
    assert '"b/c"' in text
    assert "| base | `base` |" in text
    assert recipe.id in text, "models are known by content"
    assert "samples-test.json" in left(out)
    assert str(models.family()["base"]) in (out / "recipe.yaml").read_text()


def test_the_hub_reads_the_card(recipe: Recipe, tmp_path: Path) -> None:
    """What can be checked of the hub's own validation without the network."""
    from huggingface_hub import ModelCard as HubCard
    from huggingface_hub.repocard import metadata_load

    hub = dataclasses.replace(
        recipe,
        base=ModelRef("base", "org/base"),
        models=(ModelRef("a", "org/a@v1"), ModelRef("b", "org/b")),
    )
    results = (Result("gsm8k", "exact_match", 0.5, 0.01, 200), Result("wiki", "ppl", 9.5))
    path = tmp_path / "README.md"
    path.write_text(render_card(hub, ModelCard(results=results, license="mit"), "out"))
    data = HubCard.load(path).data
    assert data.base_model == ["org/base", "org/a", "org/b"]
    assert data.tags == ["merge", "evomerge"]
    assert [(r.task_type, r.dataset_type, r.metric_type) for r in data.eval_results] == [
        ("text-generation", "gsm8k", "exact_match"),
        ("text-generation", "wiki", "ppl"),
    ]
    front = metadata_load(path)
    assert front["base_model_relation"] == "merge"
    assert front["model-index"][0]["name"] == "out"
    assert yaml.safe_load(data.to_yaml()) == front, "the hub's own form of it is the same"
