"""A LoRA adapter in PEFT's format as an expert: the base plus low-rank task vectors.

Hu et al. 2022, "LoRA" (arXiv:2106.09685): ``W = W_0 + s B A`` with ``s = alpha / r``, or
``alpha / sqrt(r)`` (Kalajdzievski 2023, rsLoRA, arXiv:2312.03732). Nothing here needs peft.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.checkpoint import Checkpoint, TensorInfo, locate, read_tensors
from evomerge.errors import CheckpointError

if TYPE_CHECKING:
    import torch

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"\.lora_(?:embedding_)?([AB])(?:\.weight)?$")
_NOT_LINEAR = {
    "use_dora": "DoRA rescales the columns of the sum",
    "lora_bias": "a bias of its own",
    "target_parameters": "factors of stacked parameters",
    "trainable_token_indices": "trained single tokens",
    "alora_invocation_tokens": "active after certain tokens only",
    "layer_replication": "layers of the base repeated",
}
_RESIDUAL = ("pissa", "olora", "corda", "loftq")
"""Initialisations that change the base itself: the factors are no change of the original."""


@dataclasses.dataclass(frozen=True)
class Factors:
    """Where the two factors of one task vector lie.

    Attributes:
        a: Name of ``lora_A`` in the adapter's file, (r, in).
        b: Name of ``lora_B``, (out, r).
        scale: s, on their product.
        transposed: Whether the base keeps the weight as (in, out): GPT-2's Conv1D, embeddings.
    """

    a: str
    b: str
    scale: float
    transposed: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter(Checkpoint):
    """A LoRA adapter seen as a full checkpoint: its base's tensors, with task vectors added.

    Attributes:
        base: The checkpoint that it was trained on.
        factors: Base tensor to the factors of its task vector.
        replaced: Base tensor to the adapter's own full copy of it (``modules_to_save``, biases).
        own: The tensors of the adapter's file.
    """

    base: Checkpoint = dataclasses.field(kw_only=True)
    factors: Mapping[str, Factors] = dataclasses.field(kw_only=True)
    replaced: Mapping[str, str] = dataclasses.field(kw_only=True)
    own: Checkpoint = dataclasses.field(kw_only=True)

    @classmethod
    def read(cls, name: str, source: str, folder: Path, base: Checkpoint | None) -> Adapter:
        """Reads an adapter's configuration and header; reads no weights.

        Args:
            name: Short name of the expert.
            source: What the user wrote.
            folder: Holds ``adapter_config.json`` and ``adapter_model.safetensors``.
            base: The base model.

        Raises:
            CheckpointError: No base, a kind of adapter that is not a low-rank sum, factors that
                do not fit the base, or a damaged file.
        """
        if base is None:
            raise CheckpointError(
                f"{name}: {folder} is a LoRA adapter: it needs models.base, the model that it "
                "was trained on."
            )
        config = _config(name, folder)
        if not (folder / WEIGHTS).exists():
            raise CheckpointError(
                f"{name}: {folder} has no {WEIGHTS}; pickled adapters (.bin) are not read. Load "
                "it with peft and save_pretrained() it again."
            )
        own = Checkpoint(name, source, folder, config, read_tensors(name, folder, [WEIGHTS]))
        factors, replaced = _match(own, base)
        return cls(
            name, source, folder, base.config, base.tensors,
            base=base, factors=factors, replaced=replaced, own=own,
        )  # fmt: skip

    def tensor(self, name: str) -> torch.Tensor:
        """The base's tensor with the task vector added, in fp32; a view where there is none."""
        import torch

        copy = self.replaced.get(name)
        weight = self.own.tensor(copy) if copy else self.base.tensor(name)
        if name not in self.factors:
            return weight
        return torch.addmm(weight.float(), *self._product(name))

    def tokens(self) -> Mapping[str, int] | None:
        """Token to id: an adapter brings no tokenizer of its own, or one like its base's."""
        return super().tokens() or self.base.tokens()

    def low_rank(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Factors of one task vector.

        Returns:
            fp32 (rows, r) and (r, columns) whose product is the expert's tensor minus the base's;
            None where the adapter leaves the tensor alone or brings a copy of its own.
        """
        if name not in self.factors or name in self.replaced:
            return None
        return self._product(name)

    def _product(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.factors[name]
        a, b = self.own.tensor(found.a).float(), self.own.tensor(found.b).float()
        left, right = (a.T, b.T) if found.transposed else (b, a)
        return (left * found.scale).contiguous(), right.contiguous()

    def audited(self) -> Adapter:
        """Hashes the adapter's file, its scale and its base; looks for NaN and Inf in the file."""
        base = self.base if self.base.content else self.base.audited()
        scales = {n: [f.a, f.b, f.scale, f.transposed] for n, f in sorted(self.factors.items())}
        parts = (self.own.audited().content, base.content, json.dumps(scales, sort_keys=True))
        content = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        return dataclasses.replace(self, content=content, base=base)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter rather than a full checkpoint."""
    return (folder / CONFIG).exists() and not (folder / "config.json").exists()


def open_expert(name: str, source: str, base: Checkpoint | None) -> Checkpoint:
    """Opens an expert: a full checkpoint, or an adapter of the base.

    Args:
        name: Short name.
        source: A local folder or a hub id.
        base: The base model, or None.

    Raises:
        CheckpointError: See :meth:`Checkpoint.open` and :meth:`Adapter.read`.
    """
    folder = locate(name, source)
    if is_adapter(folder):
        return Adapter.read(name, source, folder, base)
    return Checkpoint.open(name, source)


def _config(name: str, folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text())
        kind = str(config.get("peft_type", "LORA")).upper()
    except (ValueError, AttributeError) as e:
        raise CheckpointError(f"{name}: {folder / CONFIG} is not valid: {e}") from e
    if kind != "LORA":
        raise CheckpointError(
            f"{name}: {folder} is a {kind} adapter; only LoRA adapters can be merged. Merge it "
            "into its base first (peft's merge_and_unload) and give the result."
        )
    for key, why in _NOT_LINEAR.items():
        if config.get(key):
            raise CheckpointError(
                f"{name}: {folder} is a LoRA adapter with {key} ({why}), which is not a low-rank "
                "sum. Merge it into its base first (peft's merge_and_unload) and give the result."
            )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_RESIDUAL):
        raise CheckpointError(
            f"{name}: {folder} was initialised by {start!r}, which changes the base: its factors "
            "are no change of the original weights. Save it with peft's "
            "path_initial_model_for_weight_conversion, which converts it, and give that."
        )
    alphas = [config.get("lora_alpha", 8), *_patterns(name, folder, config).values()]
    odd = [a for a in alphas if isinstance(a, bool) or not isinstance(a, (int, float))]
    odd += [a for a in alphas if isinstance(a, float) and not math.isfinite(a)]
    if odd:
        raise CheckpointError(
            f"{name}: {folder / CONFIG}: expected numbers for lora_alpha and alpha_pattern, got "
            f"{odd[0]!r}."
        )
    return dict(config)


def _patterns(name: str, folder: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """``alpha_pattern``, whose keys are regular expressions."""
    found = config.get("alpha_pattern") or {}
    try:
        if not isinstance(found, Mapping):
            raise TypeError(f"alpha_pattern is {found!r}")
        for pattern in found:
            re.compile(pattern)
    except (TypeError, re.error) as e:
        raise CheckpointError(f"{name}: {folder / CONFIG} is not valid: {e}.") from e
    return found


def _match(own: Checkpoint, base: Checkpoint) -> tuple[dict[str, Factors], dict[str, str]]:
    """Pairs the adapter's tensors with the base's."""
    pairs: dict[str, dict[str, str]] = {}
    replaced: dict[str, str] = {}
    for key in own.tensors:
        factor = _FACTOR.search(key)
        if factor:
            pairs.setdefault(key[: factor.start()], {})[factor.group(1)] = key
        else:
            # A trained embedding is stored whole beside its factors.
            plain = key.removeprefix(_PREFIX).replace(".base_layer.", ".")
            replaced[_base_name(own.name, plain, base)] = key
    factors: dict[str, Factors] = {}
    for module, pair in pairs.items():
        if set(pair) != {"A", "B"}:
            raise CheckpointError(
                f"{own.name}: {own.folder / WEIGHTS} has only one of the two factors of "
                f"{module!r}."
            )
        name = _base_name(own.name, module.removeprefix(_PREFIX) + ".weight", base)
        factors[name] = _factors(own, pair["A"], pair["B"], module, base.tensors[name])
    for name, key in replaced.items():
        if own.tensors[key].shape != base.tensors[name].shape:
            raise CheckpointError(
                f"{own.name}: {key!r} has shape {list(own.tensors[key].shape)}, the base's "
                f"{name!r} {list(base.tensors[name].shape)}. Was it trained on another base?"
            )
    return factors, replaced


def _base_name(name: str, wanted: str, base: Checkpoint) -> str:
    """The base's name of a tensor; a bare checkpoint lacks the prefix of its model class."""
    for candidate in (wanted, *(wanted.removeprefix(p) for p in ("transformer.", "model."))):
        if candidate in base.tensors:
            return candidate
    tied = " Its head is tied to the embedding." if base.config.get("tie_word_embeddings") else ""
    raise CheckpointError(
        f"{name}: the adapter changes {wanted!r}, which the base {base.name!r} does not have. Was "
        f"it trained on another base?{tied}"
    )


def _factors(own: Checkpoint, a: str, b: str, module: str, weight: TensorInfo) -> Factors:
    shapes = own.tensors[a].shape, own.tensors[b].shape
    if any(len(s) != 2 for s in shapes):
        raise CheckpointError(
            f"{own.name}: the factors of {module!r} have shapes {[list(s) for s in shapes]}; only "
            "those of matrices can be merged."
        )
    (rank, n_in), (n_out, rank_b) = shapes
    transposed = bool(own.config.get("fan_in_fan_out")) or ".lora_embedding_" in a
    shape = (n_in, n_out) if transposed else (n_out, n_in)
    if rank != rank_b or shape != weight.shape:
        raise CheckpointError(
            f"{own.name}: factors of shape {[n_out, rank_b]} and {[rank, n_in]} do not fit the "
            f"base's {weight.name!r} of shape {list(weight.shape)}. Was it trained on another "
            "base?"
        )
    alpha = own.config.get("lora_alpha", 8)
    for pattern, value in (own.config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module.removeprefix(_PREFIX)):
            alpha = value
            break
    root = bool(own.config.get("use_rslora"))
    return Factors(a, b, float(alpha) / (rank**0.5 if root else rank), transposed)
