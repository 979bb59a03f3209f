"""What a method prepares, computed once per machine and mapped by all its workers.

Ranks, singular vectors and solves can take longer than a whole search spends merging, and cost
memory in every worker. They are kept in ``<cache>/prepared/<key>/``, one safetensors file per
tensor, where the key is the content of the models, the method with its settings, and the source
code that computes them. A tensor that is one of the models' own is not copied: the file says which
one. ``rm -r`` of the folder costs time, nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evomerge.cache import appearing, locked
from evomerge.methods import Basis
from evomerge.methods.low_rank import LowRank, Source
from evomerge.recipe import Scalar

log = logging.getLogger(__name__)

_PACKAGE = "evomerge.methods."


class PreparedCache:
    """Bases of one pool and one method on disk.

    Args:
        root: The cache folder.
        contents: Content hash of the base (or ``""``) and of every expert, in order. An unknown
            one switches the cache off.
        method: Name of the merge method.
        fixed: Its settings.
        write: Whether what is not there yet is kept.
    """

    def __init__(
        self,
        root: Path,
        contents: Sequence[str],
        method: str,
        fixed: Mapping[str, Scalar],
        *,
        write: bool = True,
    ) -> None:
        self._keeps = write
        settings = {k: v for k, v in sorted(fixed.items()) if k != "rounding"}
        parts = [source_hash(), torch.__version__, method, settings, list(contents)]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
        self._folder = root / "prepared" / key if all(contents[1:]) else None

    def survey(self, make: Callable[[], Any]) -> Any:
        """The method's survey, made by ``make`` where it is not stored."""
        return self._through("survey", make, (), lambda value: ((), value), lambda _, value: value)

    def basis(
        self,
        tensor: str,
        sources: Sequence[Source],
        make: Callable[[], Basis],
        *,
        wait: bool = True,
    ) -> Basis | None:
        """The basis of one tensor, made by ``make`` where it is not stored.

        Args:
            tensor: Its name.
            sources: The models' tensors of that name, base first.
            make: Computes it.
            wait: Whether to wait for another worker that is making it.

        Returns:
            The basis; None where another worker is making it and ``wait`` is off.
        """
        name = hashlib.sha256(tensor.encode()).hexdigest()[:32]
        found: Basis | None = self._through(
            name, make, sources, lambda b: (b.tensors, b.extra), Basis, wait=wait
        )
        return found

    def _through(
        self,
        name: str,
        make: Callable[[], Any],
        sources: Sequence[Source],
        split: Callable[[Any], tuple[tuple[Source, ...], Any]],
        join: Callable[[tuple[Source, ...], Any], Any],
        *,
        wait: bool = True,
    ) -> Any:
        if self._folder is None:
            return make()
        path = self._folder / f"{name}.safetensors"
        found = _read(path, sources)
        if found is None and not self._keeps:
            return make()
        if found is None:
            with locked(path.with_suffix(".lock"), wait=wait) as mine:
                if not mine:
                    return None
                found = _read(path, sources)  # another worker may have been first
                if found is None:
                    value = make()
                    tensors, extra = split(value)
                    if extra is None and all(_index(t, sources) is not None for t in tensors):
                        with contextlib.suppress(OSError):
                            path.with_suffix(".lock").unlink()
                        return value  # nothing was computed
                    if not _write(path, tensors, extra, sources):
                        return value
                    found = _read(path, sources)
                    if found is None:
                        return value
        return join(*found)


@functools.cache
def source_hash() -> str:
    """Hash of the code of all merge methods: what older code prepared is prepared again."""
    folder = Path(str(importlib.import_module("evomerge.methods").__file__)).parent
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _warn_once(message: str) -> None:
    log.warning(message)


def _warn(message: str, folder: Path, error: Exception) -> None:
    """One line per folder and kind of error, not one per tensor."""
    _warn_once(message % (folder, type(error).__name__))


def _index(tensor: Source, sources: Sequence[Source]) -> int | None:
    """Which of the sources a tensor is."""
    for i, source in enumerate(sources):
        if tensor is source:
            return i
        if isinstance(tensor, LowRank) or isinstance(source, LowRank):
            continue
        same = (
            tensor.data_ptr() == source.data_ptr()
            and tensor.shape == source.shape
            and tensor.dtype == source.dtype
            and tensor.stride() == source.stride()
        )
        if same:
            return i
    return None


def _write(path: Path, tensors: Sequence[Source], extra: Any, sources: Sequence[Source]) -> bool:
    """Whether it could be written; a full disk costs time and memory, not correctness."""
    from safetensors.torch import save_file

    stored: dict[str, torch.Tensor] = {}
    places: list[int | str] = []
    for tensor in tensors:
        index = _index(tensor, sources)
        if index is not None:
            places.append(index)
        elif isinstance(tensor, LowRank):
            raise TypeError("a method's basis holds factors that are none of its sources")
        else:
            places.append(_store(tensor, stored))
    note = json.dumps({"tensors": places, "extra": _encode(extra, stored)})
    try:
        with appearing(path) as part:
            save_file(stored, part, metadata={"basis": note})
    except (OSError, RuntimeError) as e:  # safetensors wraps what the disk says
        _warn("%s cannot be written (%s): every worker prepares for itself.", path.parent, e)
        return False
    return True


def _read(path: Path, sources: Sequence[Source]) -> tuple[tuple[Source, ...], Any] | None:
    """What :func:`_write` wrote, its tensors views of the mapped file; None where it is not."""
    from safetensors import SafetensorError, safe_open

    try:
        file: Any = safe_open(str(path), framework="pt")
        note = json.loads(file.metadata()["basis"])
        tensors = tuple(
            sources[place] if isinstance(place, int) else file.get_tensor(place)
            for place in note["tensors"]
        )
        return tensors, _decode(note["extra"], file.get_tensor)
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as e:
        _warn("a file of %s cannot be read (%s) and is made anew.", path.parent, e)
        return None


def _store(tensor: torch.Tensor, stored: dict[str, torch.Tensor]) -> str:
    name = str(len(stored))
    stored[name] = tensor.detach().to("cpu", copy=True).contiguous()
    return name


def _encode(value: Any, stored: dict[str, torch.Tensor]) -> Any:
    """Plain JSON for what methods keep on the host; tensors and arrays go into ``stored``."""
    if isinstance(value, torch.Tensor):
        return {"tensor": _store(value, stored)}
    if isinstance(value, np.ndarray):
        return {"array": _store(torch.from_numpy(np.ascontiguousarray(value)), stored)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        made = type(value)
        if not made.__module__.startswith(_PACKAGE):
            raise TypeError(f"{made} is no dataclass of {_PACKAGE}*")
        fields = {
            f.name: _encode(getattr(value, f.name), stored) for f in dataclasses.fields(value)
        }
        return {"class": [made.__module__, made.__qualname__], "fields": fields}
    if isinstance(value, (tuple, list)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_encode(v, stored) for v in value]}
    if isinstance(value, Mapping):
        return {"map": [[_encode(k, stored), _encode(v, stored)] for k, v in value.items()]}
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a method's basis holds a {type(value)}, which cannot be stored")


def _decode(value: Any, tensor: Callable[[str], torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    (kind, content), *rest = value.items()
    if kind == "tensor":
        return tensor(content)
    if kind == "array":
        return tensor(content).numpy()
    if kind == "class":
        module, name = content
        if not module.startswith(_PACKAGE):
            raise ValueError(f"{module} is no module of {_PACKAGE}*")
        made = getattr(importlib.import_module(module), name)
        return made(**{k: _decode(v, tensor) for k, v in rest[0][1].items()})
    if kind == "map":
        return {_decode(k, tensor): _decode(v, tensor) for k, v in content}
    items = [_decode(v, tensor) for v in content]
    return tuple(items) if kind == "tuple" else items
