"""Building a zoo once: a content-addressed folder, made beside its place and renamed into it."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import platform
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.cache import cache_folder
from evomerge.errors import ConfigError
from evomerge.zoo import arithmetic
from evomerge.zoo.corpus import read_corpus
from evomerge.zoo.progress import Progress, progress_bar
from evomerge.zoo.sizes import DOMAINS, Size, find_size
from evomerge.zoo.tasks import make_documents, write_tasks

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

VERSION = 2
"""Raise it whenever the builder makes something else from the same settings."""

SEED = 20_260_101
MODELS = ("base", *DOMAINS)
_MANIFEST = "zoo.json"
_N_SCORED = 100
_N_MATH = 8000


def default_folder(size: str = "small") -> Path:
    """Say where a zoo lives unless told otherwise.

    Args:
        size: A key of `SIZES`.

    Returns:
        `<cache>/zoo/<size>-<hash>`, where the cache is `$EVOMERGE_CACHE`,
        `$XDG_CACHE_HOME/evomerge` or `~/.cache/evomerge`.

    Raises:
        ConfigError: Unknown size.
    """
    return cache_folder() / "zoo" / f"{size}-{_fingerprint(size)[:12]}"


def build_zoo(out: Path | None = None, size: str = "small", progress: bool = True) -> Path:
    """Build the zoo, or find the one that is already there.

    Two processes that ask for the same folder build it once. The folder appears whole or not at
    all.

    Args:
        out: The folder; `default_folder(size)` unless given.
        size: A key of `SIZES`.
        progress: Whether to show progress on stderr.

    Returns:
        The folder: `base/`, `code/`, `prose/`, `math/`, `tasks/`, `zoo.json`.

    Raises:
        ConfigError: Unknown size, or `out` holds something else.
        EvomergeError: This Python carries no source text.
    """
    settings = find_size(size)
    folder = Path(out) if out is not None else default_folder(size)
    if _is_finished(folder, size):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f".{folder.name}.lock")):
        if _is_finished(folder, size):
            return folder
        # The lock is ours, so whatever lies there was left by a build that was killed.
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            _build(part, size, settings, progress)
            if folder.is_dir():
                folder.rmdir()
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def _is_finished(folder: Path, size: str) -> bool:
    """Say whether the folder holds this zoo; refuse a folder that holds something else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        manifest = {}
    if manifest.get("fingerprint") != _fingerprint(size):
        found = manifest.get("size", "no finished zoo")
        raise ConfigError(
            f"{folder} is not the {size!r} zoo of this Python, torch and evomerge (found: "
            f"{found}): name another folder, or remove this one"
        )
    return True


def _fingerprint(size: str) -> str:
    """Hash what decides the weights: versions and settings."""
    decides = {
        "version": VERSION,
        "seed": SEED,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "tokenizers")},
        "settings": dataclasses.asdict(find_size(size)),
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive file lock; the kernel frees it when the process dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _fixed_torch() -> Iterator[None]:
    """One thread, deterministic kernels and a fixed seed; all given back afterwards."""
    import torch

    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(mode=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(mode=strict)
            torch.set_num_threads(threads)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep the bar of `save_pretrained` away from ours."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _build(folder: Path, size: str, settings: Size, shown: bool) -> None:
    """Build everything into an existing folder, the manifest last."""
    started, cpu = time.perf_counter(), time.process_time()
    total = settings.base_steps + sum(settings.expert_steps)
    with progress_bar(total * 1.1, shown) as progress, _fixed_torch():
        from evomerge.zoo.train import train_tokenizer

        progress.stage("reading the standard library")
        corpus = read_corpus(settings.corpus_bytes)
        rng = np.random.default_rng(SEED)
        train = dict(corpus.train)
        n_math = min(_N_MATH, settings.corpus_bytes // 100)
        train["math"] = arithmetic.documents(n_math, rng)
        seen = arithmetic.runs(train["math"])
        documents = make_documents(corpus.held_out, seen, settings.n_documents, rng)
        write_tasks(documents, folder / "tasks")

        progress.stage("training the tokenizer")
        tokenizer = train_tokenizer([t for d in DOMAINS for t in train[d]], settings)
        progress.advance(0.04 * total)
        models, losses = _train_models(settings, tokenizer, train, progress)

        progress.stage("scoring and saving")
        with _quiet_transformers():
            for name, model in models.items():
                model.save_pretrained(folder / name)
                tokenizer.save_pretrained(folder / name)
        manifest = {
            "fingerprint": _fingerprint(size),
            "size": size,
            "python": platform.python_version(),
            "torch": importlib.metadata.version("torch"),
            "settings": dataclasses.asdict(settings),
            "n_parameters": models["base"].num_parameters(),
            "n_training_documents": {d: len(train[d]) for d in DOMAINS},
            "n_documents": {task: len(rows) for task, rows in documents.items()},
            "training_loss": losses,
            "bits_per_byte": _score(models, tokenizer, documents),
            "seconds": {
                "wall": round(time.perf_counter() - started, 1),
                "cpu": round(time.process_time() - cpu, 1),
            },
        }
        text = json.dumps(manifest, indent=2) + "\n"
        (folder / _MANIFEST).write_text(text, encoding="utf-8")


def _train_models(
    settings: Size,
    tokenizer: PreTrainedTokenizerFast,
    texts: Mapping[str, Sequence[str]],
    progress: Progress,
) -> tuple[dict[str, LlamaForCausalLM], dict[str, float]]:
    """Train the base, then the experts side by side; returns models and final losses."""
    import copy

    from evomerge.zoo.train import Rows, new_model, train

    lock, stopped = threading.Lock(), threading.Event()

    def on_step(_: float) -> None:
        if stopped.is_set():
            raise InterruptedError("the build of the zoo was stopped")
        with lock:
            progress.advance(1)

    def rows(seed: int) -> dict[str, Rows]:
        return {
            d: Rows(texts[d], tokenizer, settings.row, np.random.default_rng([SEED, seed, i]))
            for i, d in enumerate(DOMAINS)
        }

    progress.stage("training the base")
    base = new_model(settings, tokenizer)
    models, losses = {"base": base}, {}
    losses["base"] = train(
        base,
        rows(0),
        settings.base_mixture,
        batch=settings.batch,
        steps=settings.base_steps,
        rate=settings.base_rate,
        rng=np.random.default_rng([SEED, 0]),
        on_step=on_step,
        parts=2,
    )

    def expert(i: int) -> float:
        others = (1 - settings.own_share) / (len(DOMAINS) - 1)
        return train(
            models[DOMAINS[i]],
            rows(1 + i),
            [settings.own_share if d == DOMAINS[i] else others for d in DOMAINS],
            batch=settings.batch,
            steps=settings.expert_steps[i],
            rate=settings.expert_rates[i],
            rng=np.random.default_rng([SEED, 1 + i]),
            on_step=on_step,
        )

    progress.stage("training the experts: " + ", ".join(DOMAINS))
    models.update((name, copy.deepcopy(base)) for name in DOMAINS)
    with ThreadPoolExecutor(len(DOMAINS)) as threads:
        try:
            found = list(threads.map(expert, range(len(DOMAINS))))
        except BaseException:
            stopped.set()  # or leaving the pool would wait for the other experts
            raise
    return models, losses | dict(zip(DOMAINS, found, strict=True))


def _score(
    models: Mapping[str, LlamaForCausalLM],
    tokenizer: PreTrainedTokenizerFast,
    documents: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, dict[str, float]]:
    """Score every model on the first documents of every log-likelihood task."""
    from evomerge.zoo.score import bits_per_byte

    texts = {d: [str(r["text"]) for r in documents[f"zoo_{d}_ll"][:_N_SCORED]] for d in DOMAINS}
    return {
        name: {
            d: round(float(bits_per_byte(model, tokenizer, texts[d]).mean()), 4) for d in DOMAINS
        }
        for name, model in models.items()
    }
