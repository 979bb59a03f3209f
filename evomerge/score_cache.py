"""Scores on disk under what they depend on: nothing is scored twice, in any run of a cache folder.

An entry's key is the sha256 of the recipe's id (the content of the models, and every coefficient),
the split, what the evaluator says that its scores on that split depend on, the live model as the
worker describes it, the versions of what computes, and evomerge's own code that merges and scores.
So an entry never goes out of date: a change of anything on that list asks for another entry. What
is not on it moves scores by rounding alone: batch size, threads, which GPU.

Entries are small (100 documents of 3 objectives: 2.7 kB, written in 0.5 ms, found in 0.4), one
file each, written beside their place and renamed into it, so that workers need no lock: two that
score the same recipe at once write the same entry. One that cannot be read back is replaced.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from evomerge.cache import appearing
from evomerge.recipe import Recipe
from evomerge.trial import Scores, Split

MAX_BYTES = 2**28
"""What a folder may hold until the entries used longest ago are removed: 256 MiB, some 100,000."""

_SWEEP_EVERY = 256
"""Entries that a worker writes between two looks at the size of the folder."""

_CODE = ("evaluators", "methods", "materialize.py", "placement.py", "prepared.py", "adapter.py")
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError)


class DependsOn(Protocol):
    """What an evaluator's scores on a split depend on; None: not to be kept."""

    def __call__(self, split: Split, /) -> Mapping[str, Any] | None: ...  # noqa: D102


class ScoreCache:
    """Scores of whole splits, by content.

    Args:
        folder: The cache folder; entries lie below its ``scores/``.
        depends_on: The evaluator's ``scores_depend_on``.
        model: Plain data on the live model beside what the recipe says: dtype, device type, and
            what came with the base's weights.
        max_bytes: See :data:`MAX_BYTES`.
    """

    def __init__(
        self,
        folder: Path,
        depends_on: DependsOn,
        model: Mapping[str, Any],
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._folder = folder / "scores"
        self._depends_on = functools.cache(depends_on)
        versions = {n: importlib.metadata.version(n) for n in ("torch", "transformers", "lm_eval")}
        self._same = {"model": dict(model), "versions": versions, "code": code_hash()}
        self._max_bytes = max_bytes
        self._n_written = 0

    def path(self, recipe: Recipe, split: Split) -> Path | None:
        """Where the scores of a recipe on a split belong; None where they are not kept."""
        evaluator = self._depends_on(split)
        if evaluator is None:
            return None
        data = {"recipe": recipe.id, "split": split, "evaluator": evaluator, **self._same}
        text = json.dumps(data, sort_keys=True, separators=(",", ":"))
        key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return self._folder / key[:2] / f"{key}.npz"

    def find(self, recipe: Recipe, split: Split) -> Scores | None:
        """Scores of an earlier evaluation, without ``seconds``; None where there are none."""
        path = self.path(recipe, split)
        if path is None:
            return None
        try:
            with np.load(path, allow_pickle=False) as data:
                note = json.loads(str(data["note"]))
                arrays = {name: data[f"values{i}"] for i, name in enumerate(note["arrays"])}
            scores = Scores(
                values={str(k): float(v) for k, v in note["values"].items()},
                stderr={k: math.nan if v is None else float(v) for k, v in note["stderr"].items()},
                per_example={k: arrays.get(k) for k in note["values"]},
            )
        except (*_UNREADABLE, zipfile.BadZipFile):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # just used: the last one to be removed
        return scores

    def add(self, recipe: Recipe, split: Split, scores: Scores) -> None:
        """Keeps the scores of a whole split. A folder that cannot be written costs only time."""
        path = self.path(recipe, split)
        if path is None:
            return
        arrays = {k: v for k, v in scores.per_example.items() if v is not None}
        note = {
            "values": dict(scores.values),
            "stderr": {k: None if math.isnan(v) else v for k, v in scores.stderr.items()},
            "arrays": list(arrays),
        }
        named: dict[str, Any] = {f"values{i}": v for i, v in enumerate(arrays.values())}
        with contextlib.suppress(OSError):
            with appearing(path) as part, part.open("wb") as f:
                np.savez(f, note=np.array(json.dumps(note)), **named)
            if self._n_written % _SWEEP_EVERY == 0:
                self._sweep()
            self._n_written += 1

    def _sweep(self) -> None:
        """Removes what was used longest ago until a tenth of the room is free again."""
        found = []
        for path in self._folder.glob("*/*"):
            with contextlib.suppress(OSError):  # another worker may be sweeping too
                found.append((path.stat().st_mtime, path.stat().st_size, path))
        total = sum(size for _, size, _ in found)
        if total <= self._max_bytes:
            return
        for _, size, path in sorted(found):
            if total <= 0.9 * self._max_bytes:
                return
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size


def side_files_hash(folder: Path) -> str:
    """Hash of what lies beside a checkpoint's weights: configuration, tokenizer, chat template."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in {".json", ".jinja", ".model", ".txt", ".py"} and path.is_file():
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()


@functools.cache
def code_hash() -> str:
    """Hash of evomerge's own code that merges and scores: what older code scored is not reused."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for name in _CODE:
        place = package / name
        for path in sorted(place.iterdir()) if place.is_dir() else [place]:
            if path.is_file():
                digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()
