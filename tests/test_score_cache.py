from __future__ import annotations

import dataclasses
import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from evomerge.score_cache import ScoreCache, side_files_hash
from evomerge.trial import Scores
from tests.fakes import recipe, scores_of

ONE, TWO = recipe(0.5), recipe(0.25)
MODEL = {"dtype": "torch.float32", "device": "cpu"}


def depends_on(split) -> dict[str, str]:
    return {"documents": f"those of {split}"}


@pytest.fixture
def cache(tmp_path) -> ScoreCache:
    return ScoreCache(tmp_path, depends_on, MODEL)


def test_what_was_added_is_found_by_another_process_with_the_same_settings(
    cache, tmp_path
) -> None:
    odd = {"stderr": {"a": 0.1, "b": math.nan}, "per_example": {"a": np.float32([1, math.nan, 0])}}
    scores = dataclasses.replace(scores_of(ONE), **odd)
    assert cache.find(ONE, "search") is None
    cache.add(ONE, "search", scores)
    found = ScoreCache(tmp_path, depends_on, dict(MODEL)).find(ONE, "search")
    assert found.values == scores.values
    assert found.stderr["a"] == 0.1
    assert math.isnan(found.stderr["b"])
    np.testing.assert_array_equal(found.per_example["a"], scores.per_example["a"])
    assert found.per_example["a"].dtype == np.float32
    assert found.per_example["b"] is None
    assert found.seconds == {}


def test_another_recipe_split_evaluator_or_model_is_another_entry(cache, tmp_path) -> None:
    cache.add(ONE, "search", scores_of(ONE))
    assert cache.find(TWO, "search") is None
    assert cache.find(ONE, "select") is None
    assert (
        ScoreCache(tmp_path, lambda _: {"documents": "others"}, MODEL).find(ONE, "search") is None
    )
    half = MODEL | {"dtype": "torch.bfloat16"}
    assert ScoreCache(tmp_path, depends_on, half).find(ONE, "search") is None


def test_an_evaluator_that_does_not_say_is_not_cached(tmp_path) -> None:
    cache = ScoreCache(tmp_path, lambda _: None, MODEL)
    cache.add(ONE, "search", scores_of(ONE))
    assert cache.find(ONE, "search") is None
    assert not list(tmp_path.rglob("*.npz"))


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_a_damaged_entry_is_ignored_and_replaced(cache, damage: str) -> None:
    scores = scores_of(ONE)
    cache.add(ONE, "search", scores)
    path = cache.path(ONE, "search")
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "other": b"{}"}[damage])
    assert cache.find(ONE, "search") is None
    cache.add(ONE, "search", scores)
    assert cache.find(ONE, "search").values == scores.values


def test_what_was_used_longest_ago_goes_first(tmp_path) -> None:
    recipes = [recipe(i / 8) for i in range(8)]
    size = 3 * _entry_size(tmp_path / "probe")
    for i, r in enumerate(recipes):
        cache = ScoreCache(tmp_path, depends_on, MODEL, max_bytes=size)  # every first one sweeps
        cache.add(r, "search", scores_of(r))
        os.utime(cache.path(r, "search"), (i, i))
        if i > 0:
            cache.find(recipes[0], "search")  # and so used all the time
    assert cache.find(recipes[0], "search") is not None
    assert cache.find(recipes[1], "search") is None
    assert cache.find(recipes[7], "search") is not None
    assert sum(f.stat().st_size for f in (tmp_path / "scores").rglob("*.npz")) <= size


def _entry_size(folder) -> int:
    cache = ScoreCache(folder, depends_on, MODEL)
    cache.add(ONE, "search", scores_of(ONE))
    return cache.path(ONE, "search").stat().st_size


def test_workers_need_no_lock(tmp_path) -> None:
    scores = scores_of(ONE, n=400)

    def work(_: int) -> bool:
        cache = ScoreCache(tmp_path, depends_on, MODEL)
        cache.add(ONE, "search", scores)
        return cache.find(ONE, "search").values == scores.values

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(80)))
    assert len([f for f in tmp_path.rglob("*") if f.is_file()]) == 1


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path) -> None:
    (tmp_path / "scores").write_text("in the way")
    cache = ScoreCache(tmp_path, depends_on, MODEL)
    cache.add(ONE, "search", scores_of(ONE))
    assert cache.find(ONE, "search") is None


def test_an_entry_is_small(tmp_path) -> None:
    """4 bytes per document and objective, and a kilobyte."""
    cache = ScoreCache(tmp_path, depends_on, MODEL)
    row = np.zeros(300, dtype=np.float32)
    cache.add(ONE, "search", Scores({"a": 0.0}, {"a": 0.1}, {"a": row}))
    assert cache.path(ONE, "search").stat().st_size < 4 * 300 + 1536


def test_what_lies_beside_the_weights_counts(tmp_path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("weights")
    before = side_files_hash(tmp_path)
    (tmp_path / "model.safetensors").write_text("other weights, which their own hash tells")
    assert side_files_hash(tmp_path) == before
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert side_files_hash(tmp_path) != before
