"""One checkpoint in safetensors form: found, checked, and memory-mapped.

Nothing here needs transformers: the header of a safetensors file tells names, dtypes and shapes,
and tensors are views of the mapped file, which the page cache shares between the workers of a
node.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.cache import appearing, cache_folder
from evomerge.errors import CheckpointError
from evomerge.recipe import ModelRef

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
_HUB_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.model",
    "*.txt",
    "*.jinja",
    "*.py",
)
_FLOATS = {"F64", "F32", "F16", "BF16"}


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """What the header of a safetensors file says of one tensor.

    Attributes:
        name: Name in the checkpoint.
        shape: Its shape.
        dtype: safetensors' name of the dtype: ``F32``, ``BF16``, ...
        file: File name within the checkpoint's folder.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: str

    @property
    def is_float(self) -> bool:
        """Whether it can be merged; masks and index buffers cannot."""
        return self.dtype in _FLOATS


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """A Hugging Face checkpoint folder with safetensors weights.

    Attributes:
        name: Short name, as the user calls it.
        source: What the user wrote: a folder or a hub id.
        folder: The local folder.
        config: ``config.json``.
        tensors: Tensor name to its header entry.
        content: sha256 of the weights; ``""`` before :meth:`audited`.
    """

    name: str
    source: str
    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    content: str = ""

    @classmethod
    def open(cls, name: str, source: str, revision: str | None = None) -> Checkpoint:
        """Finds a checkpoint and reads its headers; reads no weights.

        Args:
            name: Short name.
            source: A local folder, or a hub id (``org/model`` or ``org/model@revision``),
                downloaded once into the hub's own cache.
            revision: Branch, tag or commit of a hub id that names none itself.

        Returns:
            The checkpoint, with ``content`` still empty.

        Raises:
            CheckpointError: Nothing there, no safetensors, or a damaged file.
        """
        folder = locate(name, source, revision)
        files = _weight_files(name, folder)  # first: a LoRA folder has no config.json either
        try:
            config = json.loads((folder / "config.json").read_text())
        except FileNotFoundError:
            raise CheckpointError(
                f"{name}: {folder} has no config.json; expected a Hugging Face checkpoint folder."
            ) from None
        except ValueError as e:
            raise CheckpointError(f"{name}: {folder}/config.json is not valid JSON: {e}") from e
        if not isinstance(config, dict):
            raise CheckpointError(f"{name}: {folder}/config.json holds no mapping.")
        tensors = read_tensors(name, folder, files)
        if not tensors:
            raise CheckpointError(f"{name}: {folder} holds no tensors.")
        return cls(name, source, folder, config, tensors)

    @property
    def ref(self) -> ModelRef:
        """The checkpoint as recipes name it."""
        local = Path(self.source).expanduser().is_dir()
        return ModelRef(self.name, str(self.folder) if local else self.source, self.content)

    @functools.cached_property
    def _files(self) -> dict[str, Any]:
        from safetensors import safe_open

        names = {t.file for t in self.tensors.values()}
        return {n: safe_open(str(self.folder / n), framework="pt") for n in sorted(names)}

    def tensor(self, name: str) -> torch.Tensor:
        """A view of the mapped file: treat as immutable. Shape and dtype as in the header."""
        tensor: torch.Tensor = self._files[self.tensors[name].file].get_tensor(name)
        return tensor

    @property
    def as_stored(self) -> Checkpoint:
        """The checkpoint as it lies in its folder, whatever it is read as."""
        return self

    def low_rank(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:  # noqa: ARG002
        """Factors of a tensor's task vector, where a model has them: see :class:`Adapter`."""
        return None

    def tokens(self) -> Mapping[str, int] | None:
        """Token to id; None where there is no ``tokenizer.json``."""
        return vocabulary(self.folder)

    def __getstate__(self) -> dict[str, Any]:
        """Open files stay behind; another process maps them anew."""
        return {k: v for k, v in self.__dict__.items() if k != "_files"}

    def audited(self) -> Checkpoint:
        """Reads every weight once: hashes it and looks for NaN and Inf.

        The result is kept in the cache folder under (path, size, modification time), so a
        checkpoint is read once in its life.

        Returns:
            The same checkpoint with its ``content`` hash.

        Raises:
            CheckpointError: A tensor has NaN or infinite entries.
        """
        files = sorted({t.file for t in self.tensors.values()})
        with concurrent.futures.ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
            hashes = list(threads.map(self._audit_file, files))
        content = hashlib.sha256("\n".join(hashes).encode()).hexdigest()
        return dataclasses.replace(self, content=content)

    def _audit_file(self, file: str) -> str:
        path = (self.folder / file).resolve()
        stat = path.stat()
        key = hashlib.sha256(f"{path}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()
        note = cache_folder() / "audit" / f"{key}.json"
        try:
            data = json.loads(note.read_text())
        except (OSError, ValueError):
            with path.open("rb") as f:
                digest = hashlib.file_digest(f, "sha256").hexdigest()
            data = {"path": str(path), "sha256": digest, "bad": self._non_finite(file)}
            _write_note(note, data)
        if data["bad"]:
            bad = data["bad"]
            raise CheckpointError(
                f"{self.name}: {len(bad)} tensor(s) have NaN or infinite weights, the first is "
                f"{bad[0]!r} in {path}. Such a checkpoint cannot be merged; train or download it "
                "again."
            )
        return str(data["sha256"])

    def _non_finite(self, file: str) -> list[str]:
        import torch

        bad = []
        for info in self.tensors.values():
            if info.file == file and info.is_float:
                flat = self.tensor(info.name).reshape(-1)
                if not all(bool(torch.isfinite(c).all()) for c in torch.split(flat, 1 << 24)):
                    bad.append(info.name)
        return bad


def vocabulary(folder: Path) -> dict[str, int] | None:
    """Token to id, read from ``tokenizer.json``; None where there is none."""
    try:
        data = json.loads((folder / "tokenizer.json").read_text())
        vocab = data["model"]["vocab"]
        if isinstance(vocab, list):  # unigram models list [token, score]
            vocab = {str(entry[0]): i for i, entry in enumerate(vocab)}
        tokens = {str(k): int(v) for k, v in vocab.items()}
        tokens |= {str(t["content"]): int(t["id"]) for t in data.get("added_tokens") or []}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return tokens


def locate(name: str, source: str, revision: str | None = None) -> Path:
    """The local folder of a model, downloaded where ``source`` is a hub id.

    Raises:
        CheckpointError: Nothing there.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder.resolve()
    repo, _, named = source.partition("@")
    looks_local = source.startswith((".", "/", "~")) or repo.count("/") != 1
    if looks_local or folder.exists():
        raise CheckpointError(
            f"{name}: {source!r} is not a folder; expected a checkpoint folder or a hub id "
            "such as 'org/model'."
        )
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            repo, revision=named or revision, allow_patterns=list(_HUB_FILES)
        )
    except Exception as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise CheckpointError(
            f"{name}: {source!r} is no local folder and could not be had from the hub "
            f"({reason}). Check the name, the network and HF_HUB_OFFLINE, or give a local folder."
        ) from e
    return Path(found)


def _weight_files(name: str, folder: Path) -> Sequence[str]:
    index = folder / INDEX
    if index.exists():
        try:
            files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise CheckpointError(f"{name}: {index} cannot be read: {e!r}.") from e
        missing = [f for f in files if not (folder / f).exists()]
        if missing:
            raise CheckpointError(
                f"{name}: {folder} is incomplete: {len(missing)} of {len(files)} shards are "
                f"missing, the first is {missing[0]!r}. Download it again."
            )
        return files
    if (folder / "model.safetensors").exists():
        return ["model.safetensors"]
    if any(folder.glob("adapter_model*")):
        raise CheckpointError(
            f"{name}: {folder} is a LoRA adapter, not a full checkpoint: it can be an expert, not "
            "the base."
        )
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        raise CheckpointError(
            f"{name}: {folder} has only pickled weights (.bin); evomerge reads safetensors only, "
            "because unpickling can run code. Convert it: load it with transformers and "
            "save_pretrained() it again."
        )
    raise CheckpointError(f"{name}: {folder} has no model.safetensors and no {INDEX}.")


def read_tensors(name: str, folder: Path, files: Iterable[str]) -> dict[str, TensorInfo]:
    """What the headers of a model's files say of its tensors, by their names.

    Raises:
        CheckpointError: As :func:`read_header`.
    """
    return {
        key: TensorInfo(key, tuple(entry["shape"]), entry["dtype"], file)
        for file in files
        for key, entry in read_header(name, folder / file).items()
    }


def read_header(name: str, path: Path) -> dict[str, Any]:
    """The header of a safetensors file, checked against the size of the file.

    Raises:
        CheckpointError: Not such a file, or a truncated one.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            if length > min(size, 100 << 20):
                raise ValueError(f"header of {length} bytes")
            header: dict[str, Any] = json.loads(f.read(length))
        header.pop("__metadata__", None)
        end = 8 + length + max((e["data_offsets"][1] for e in header.values()), default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as e:
        raise CheckpointError(f"{name}: {path} is not a readable safetensors file: {e}.") from e
    if end != size:
        raise CheckpointError(
            f"{name}: {path} is truncated or damaged: its header promises {end} bytes, the file "
            f"has {size}. Download or save it again."
        )
    return header


def _write_note(path: Path, data: Mapping[str, Any]) -> None:
    """Best effort: a cache folder that cannot be written costs time, not correctness."""
    with contextlib.suppress(OSError), appearing(path) as part:
        part.write_text(json.dumps(data))
