"""Scores of single documents: one file per trial beside the journal, ``scores/*.npz``."""

from __future__ import annotations

import contextlib
import functools
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from evomerge.trial import Scores, Trial

Documents = npt.NDArray[np.float32]


def path_of(folder: Path, number: int, split: str) -> Path:
    """Where a trial's file lies in the run folder."""
    return folder / "scores" / f"{number:05d}-{split}.npz"


def arrays_of(scores: Scores) -> dict[str, Any]:
    """What there is to be written: a corpus metric has no scores of single documents."""
    return {k: v for k, v in scores.per_example.items() if v is not None}


def write(folder: Path, trial: Trial) -> Iterator[IO[bytes]]:
    """Writes per-document scores; the file, still open, to be synced with the record of them."""
    if trial.scores is None or trial.copied_from is not None:
        return
    arrays = arrays_of(trial.scores)
    if not arrays:
        return
    f = path_of(folder, trial.number, trial.split).open("wb")
    named = {f"values{i}": v for i, v in enumerate(arrays.values())}
    np.savez(f, names=np.array(list(arrays), dtype=np.str_), **named)
    f.flush()
    yield f


def kept(folder: Path, number: int, split: str) -> bool:
    """Whether a trial's file is there and whole: a power cut may have taken it."""
    path = path_of(folder, number, split)
    try:
        return path.exists() and bool(_read(path))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return False


def _read(path: Path) -> dict[str, Documents]:
    with np.load(path) as data:
        return {str(name): data[f"values{i}"] for i, name in enumerate(data["names"])}


class DocumentScores(Mapping[str, Documents | None]):
    """Per-document scores that are read when somebody wants them: few do, and trials are many.

    Args:
        path: Their file. Where it is missing (a folder copied without arrays), there are none.
        names: The objectives.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self._path, self._names = path, tuple(names)

    @functools.cached_property
    def _arrays(self) -> dict[str, Documents | None]:
        found: dict[str, Documents | None] = dict.fromkeys(self._names)
        with contextlib.suppress(FileNotFoundError):
            found |= _read(self._path)
        return found

    def __getitem__(self, name: str) -> Documents | None:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
