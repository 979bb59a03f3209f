"""Prepared bases on disk: the same merges, made once, mapped by every worker."""

from __future__ import annotations

import dataclasses
import fcntl
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evomerge import prepared
from evomerge.experts import ExpertPool
from evomerge.groups import GroupSpec, build_groups
from evomerge.materialize import Merger
from evomerge.methods import METHODS
from evomerge.recipe import Recipe
from tests import models


def pool_for(name: str) -> ExpertPool:
    fewest, most = METHODS[name].n_experts
    n = max(fewest, min(2, most or 2))
    f = models.family()
    return ExpertPool.open(str(f["base"]), {x: str(f[f"expert_{x}"]) for x in "ab"[:n]})


def recipe_for(name: str, pool: ExpertPool) -> Recipe:
    groups = tuple(g.group for g in build_groups(GroupSpec(), pool.tensors, pool.n_layers))
    coefficients = {
        key: np.full((len(groups), 1 if p.shared else len(pool.experts)), p.default)
        for key, p in METHODS[name].parameters.items()
    }
    return Recipe(name, pool.refs, pool.base and pool.base.ref, groups, coefficients)


def merged(pool: ExpertPool, recipe: Recipe, cache: Path | None) -> dict[str, torch.Tensor]:
    out = {t.name: torch.full(t.shape, float("nan")) for t in pool.tensors}
    Merger(pool, recipe.method, recipe.fixed, cache=cache).merge(recipe, out)
    return out


def files(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.safetensors"))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_same_merge_with_a_cold_and_a_warm_cache(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = pool_for(name)
    recipe = recipe_for(name, pool)
    expected = merged(pool, recipe, None)
    assert all(torch.equal(t, expected[n]) for n, t in merged(pool, recipe, tmp_path).items())
    stored = files(tmp_path)

    def refuse(*_: Any) -> Any:
        raise AssertionError("it is prepared already")

    if stored:
        assert len(stored) >= len(pool.tensors)
        monkeypatch.setattr(type(METHODS[name]), "prepare", refuse)
    assert all(torch.equal(t, expected[n]) for n, t in merged(pool, recipe, tmp_path).items())
    assert files(tmp_path) == stored


def test_what_needs_no_preparation_is_not_copied(tmp_path: Path) -> None:
    pool = pool_for("task_arithmetic")
    merged(pool, recipe_for("task_arithmetic", pool), tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_only_what_is_computed_is_stored(tmp_path: Path) -> None:
    """TIES keeps two bytes of rank per entry and expert; the models stay where they are."""
    pool = pool_for("ties")
    merged(pool, recipe_for("ties", pool), tmp_path)
    size = sum(f.stat().st_size for f in files(tmp_path))
    assert 2 * 2 * pool.n_parameters <= size < 2 * 2 * pool.n_parameters + 2000 * len(pool.tensors)


def test_other_models_and_settings_have_other_files(tmp_path: Path) -> None:
    pool = pool_for("ties")
    recipe = recipe_for("ties", pool)
    merged(pool, recipe, tmp_path)
    n = len(files(tmp_path))
    turned = dataclasses.replace(pool, experts=pool.experts[::-1])
    swapped = dataclasses.replace(recipe, models=recipe.models[::-1])
    merged(turned, swapped, tmp_path)
    assert len(files(tmp_path)) == 2 * n
    merged(pool, dataclasses.replace(recipe, fixed={"election": "paper"}), tmp_path)
    assert len(files(tmp_path)) == 3 * n
    merged(pool, dataclasses.replace(recipe, fixed={"rounding": "dither"}), tmp_path)
    assert len(files(tmp_path)) == 3 * n


def test_models_of_unknown_content_are_not_cached(tmp_path: Path) -> None:
    f = models.family()
    pool = ExpertPool.open(
        str(f["base"]), {"a": str(f["expert_a"]), "b": str(f["expert_b"])}, audit=False
    )
    merged(pool, recipe_for("ties", pool), tmp_path)
    assert files(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"not a safetensors file", None])
def test_a_damaged_file_is_made_anew(tmp_path: Path, content: bytes | None) -> None:
    pool = pool_for("ties")
    recipe = recipe_for("ties", pool)
    expected = merged(pool, recipe, tmp_path)
    for file in files(tmp_path):
        file.write_bytes(content if content is not None else file.read_bytes()[:-7])
    again = merged(pool, recipe, tmp_path)
    assert all(torch.equal(t, expected[n]) for n, t in again.items())


def test_without_a_writable_folder_merging_goes_on() -> None:
    pool = pool_for("ties")
    recipe = recipe_for("ties", pool)
    got = merged(pool, recipe, Path("/dev/null/nowhere"))
    assert all(torch.equal(t, got[n]) for n, t in merged(pool, recipe, None).items())


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    pool = pool_for("ties")
    recipe = recipe_for("ties", pool)
    got = merged(pool, recipe, tmp_path)
    assert all(torch.equal(t, got[n]) for n, t in merged(pool, recipe, None).items())


def test_an_export_reads_but_does_not_fill_the_cache(tmp_path: Path) -> None:
    pool = pool_for("ties")
    recipe = recipe_for("ties", pool)
    merger = Merger(pool, "ties", {}, cache=tmp_path, keep=False)
    merger.merge(recipe, {t.name: torch.empty(t.shape) for t in pool.tensors})
    assert files(tmp_path) == []


def test_new_code_prepares_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_for("ties")
    recipe = recipe_for("ties", pool)
    merged(pool, recipe, tmp_path)
    n = len(files(tmp_path))
    monkeypatch.setattr(prepared, "source_hash", lambda: "other code")
    merged(pool, recipe, tmp_path)
    assert len(files(tmp_path)) == 2 * n


def _work(cache: Path, queue: Any) -> None:
    pool = pool_for("ties")
    calls = 0
    method = METHODS["ties"]
    prepare = method.prepare

    def counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        return prepare(*arguments)

    method.prepare = counted  # type: ignore[method-assign]
    merged(pool, recipe_for("ties", pool), cache)
    queue.put(calls)


def test_two_workers_prepare_every_tensor_once(tmp_path: Path) -> None:
    models.family()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_work, args=(tmp_path, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    calls = [queue.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert sum(calls) == len(pool_for("ties").tensors)


def test_a_tensor_that_another_worker_makes_is_left_to_it(tmp_path: Path) -> None:
    """Until it is needed: workers that start together each take what is free."""
    pool = pool_for("ties")
    name = pool.tensors[0].name
    merger = Merger(pool, "ties", {}, cache=tmp_path)
    merger._prepare(name, torch.device("cpu"))
    (file,) = files(tmp_path)
    content = file.read_bytes()
    file.unlink()
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert merger._prepare(name, torch.device("cpu"), wait=False) is None
        file.write_bytes(content)
        assert merger._prepare(name, torch.device("cpu"), wait=False) is not None


def test_what_cannot_be_stored_is_refused() -> None:
    stored: dict[str, torch.Tensor] = {}
    with pytest.raises(TypeError, match="cannot be stored"):
        prepared._encode(object(), stored)
    with pytest.raises(TypeError, match="no dataclass of"):
        prepared._encode(models_ref(), stored)
    with pytest.raises(ValueError, match="no module of"):
        prepared._decode({"class": ["os", "system"], "fields": {}}, stored.__getitem__)


def models_ref() -> Any:
    from evomerge.recipe import ModelRef

    return ModelRef("a", "b")


@pytest.mark.parametrize(
    "value",
    [
        None, 1.5, True, "text", (1, (2.0, "a")), [1, [2]], {"a": 1, 2: (None,)},
        np.float64(0.25), np.int64(3),
    ],
)  # fmt: skip
def test_plain_values_survive(value: Any) -> None:
    stored: dict[str, torch.Tensor] = {}
    assert prepared._decode(prepared._encode(value, stored), stored.__getitem__) == value


def test_arrays_and_tensors_survive() -> None:
    stored: dict[str, torch.Tensor] = {}
    value = {"array": np.arange(6.0).reshape(2, 3), "tensor": torch.arange(3)}
    found = prepared._decode(prepared._encode(value, stored), stored.__getitem__)
    assert np.array_equal(found["array"], value["array"])
    assert torch.equal(found["tensor"], value["tensor"])
