"""ExpertPool: the base and the experts, found to be mergeable before anything expensive."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from evomerge.adapter import open_expert
from evomerge.checkpoint import Checkpoint, TensorInfo
from evomerge.errors import CheckpointError, ConfigError
from evomerge.recipe import ModelRef
from evomerge.roles import layer_of, role_of
from evomerge.vocabulary import respelled, spelled

if TYPE_CHECKING:
    import torch

# Equal shapes do not make two models the same function: these must agree too.
_FUNCTION_KEYS = (
    "model_type",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "n_head",
    "hidden_act",
    "activation_function",
    "tie_word_embeddings",
    "rope_theta",
    "num_experts_per_tok",
)
_REMEDY = (
    "Say whose tokenizer the merge is to have (models.tokenizer=base, or an expert's name): rows "
    "are then matched by token."
)


@dataclasses.dataclass(frozen=True)
class Misfit:
    """Why a model cannot be merged as it is.

    Attributes:
        kind: ``quantised``, ``architecture``, ``configuration``, ``tensors``, ``shape`` or
            ``vocabulary``.
        text: For the user.
    """

    kind: str
    text: str


@dataclasses.dataclass(frozen=True)
class MergeTensor:
    """A tensor to be merged, and where it stands in the model.

    Attributes:
        name: Name in the checkpoints.
        shape: Its shape.
        layer: Index of its transformer layer, or None for embeddings, head and final norm.
        role: One of :data:`~evomerge.roles.ROLES`.
    """

    name: str
    shape: tuple[int, ...]
    layer: int | None
    role: str

    @property
    def size(self) -> int:
        """Number of entries."""
        n = 1
        for s in self.shape:
            n *= s
        return n


@dataclasses.dataclass(frozen=True, eq=False)
class ExpertPool:
    """A base and K experts that can be merged.

    Attributes:
        base: The model that the experts were fine-tuned from, or None.
        experts: The experts, in column order.
        tensors: Every floating-point tensor that all of them hold, in the checkpoint's order;
            other tensors (masks, index buffers) are taken from :attr:`anchor` as they are.
        tokenizer: The model in whose vocabulary all others are read
            (:mod:`evomerge.vocabulary`); None where they have the same anyway.
    """

    base: Checkpoint | None
    experts: tuple[Checkpoint, ...]
    tensors: tuple[MergeTensor, ...]
    tokenizer: Checkpoint | None = None

    @classmethod
    def open(
        cls,
        base: str | None,
        experts: Mapping[str, str],
        *,
        tokenizer: str | None = None,
        audit: bool = True,
    ) -> ExpertPool:
        """Opens and checks checkpoints.

        Args:
            base: Folder or hub id of the base model, or None.
            experts: Expert name to folder or hub id, in column order: full checkpoints, or LoRA
                adapters of the base.
            tokenizer: The model whose tokenizer and vocabulary the merge has, ``"base"`` or an
                expert's name; None: all must have the same.
            audit: Also read every weight once (hash, NaN and Inf); cached between runs.

        Returns:
            The pool.

        Raises:
            ConfigError: No experts, a reserved name, or one model listed twice.
            CheckpointError: A checkpoint that is damaged or does not fit the others.
        """
        if not isinstance(experts, Mapping) or not all(isinstance(n, str) for n in experts):
            raise ConfigError(
                "models.experts: expected 'name: path' pairs; quote names such as 'no' or '7'."
            )
        if not experts:
            raise ConfigError("models.experts is empty; expected at least one expert: name: path.")
        if "base" in experts:
            raise ConfigError("an expert may not be called 'base'; give it another name.")
        origin = Checkpoint.open("base", str(base)) if base else None
        opened = [open_expert(name, str(source), origin) for name, source in experts.items()]
        everyone = [*([origin] if origin else []), *opened]
        _check_distinct({c.name: str(c.folder) for c in everyone}, "folder")
        alike = respelled(everyone, tokenizer) if tokenizer else everyone
        alone = (quantised(checkpoint) for checkpoint in everyone)
        pairs = (m for other in alike[1:] for m in misfits(alike[0], other))
        for misfit in itertools.chain(alone, pairs):
            if misfit:
                raise CheckpointError(misfit.text)
        if audit:
            everyone = [c.audited() for c in everyone]
            _check_distinct({c.name: c.content for c in everyone}, "weights")
        return cls.of(everyone[0] if origin else None, everyone[1 if origin else 0 :], tokenizer)

    @classmethod
    def of(
        cls,
        base: Checkpoint | None,
        experts: Sequence[Checkpoint],
        tokenizer: str | None = None,
    ) -> ExpertPool:
        """The pool of checkpoints that are known to fit; arguments as of :meth:`open`."""
        spelling = None
        if tokenizer:
            models = [*([base] if base else []), *experts]
            spelling = next(c for c in models if c.name == tokenizer)
            models = respelled(models, tokenizer)
            base, experts = (models[0], models[1:]) if base else (None, models)
        everyone = [*([base] if base else []), *experts]
        tensors = tuple(
            MergeTensor(t.name, t.shape, layer_of(t.name), role_of(t.name))
            for t in everyone[0].tensors.values()
            if t.is_float
            and all(t.name in c.tensors for c in everyone)
            and not _tied_head(everyone[0], t)  # one live tensor with the embedding: merged once
        )
        return cls(base, tuple(experts), tensors, spelling)

    @property
    def anchor(self) -> Checkpoint:
        """Whose config, tokenizer and unmerged tensors a merge takes.

        The model of :attr:`tokenizer`, else the base, else expert 0.
        """
        return self.tokenizer or self.base or self.experts[0]

    @property
    def spelling(self) -> str:
        """Name of the model in whose vocabulary all are read; empty where they agree anyway."""
        return self.tokenizer.name if self.tokenizer else ""

    @property
    def refs(self) -> tuple[ModelRef, ...]:
        """The experts as recipes name them."""
        return tuple(e.ref for e in self.experts)

    @property
    def n_layers(self) -> int:
        """Number of transformer layers, an encoder's and a decoder's side by side."""
        return max((t.layer + 1 for t in self.tensors if t.layer is not None), default=0)

    @property
    def n_parameters(self) -> int:
        """Number of merged entries of one model."""
        return sum(t.size for t in self.tensors)

    def sources(self, name: str) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """Base (or None) and expert tensors of one name, memory-mapped: treat as immutable."""
        base = self.base.tensor(name) if self.base else None
        return base, [e.tensor(name) for e in self.experts]


def _setting(checkpoint: Checkpoint, key: str) -> object:
    """A configuration entry; newer configurations keep rope_theta in rope_parameters."""
    value = checkpoint.config.get(key)
    rope = checkpoint.config.get("rope_parameters")
    return rope.get(key) if value is None and isinstance(rope, Mapping) else value


def _check_distinct(values: Mapping[str, str], what: str) -> None:
    seen: dict[str, str] = {}
    for name, value in values.items():
        if value in seen:
            raise ConfigError(
                f"{seen[value]!r} and {name!r} are the same model (same {what}); list every "
                "model once."
            )
        seen[value] = name


def quantised(checkpoint: Checkpoint) -> Misfit | None:
    """Why quantised weights cannot be merged (their codes cannot be averaged); None for others."""
    narrow = [t for t in checkpoint.tensors.values() if t.dtype.startswith(("F8", "F6", "F4"))]
    if not checkpoint.config.get("quantization_config") and not narrow:
        return None
    return Misfit(
        "quantised",
        f"{checkpoint.name!r} is quantised; only full-precision weights (float32, bfloat16, "
        "float16) can be merged. Merge the original models and quantise the result.",
    )


def _tied_head(checkpoint: Checkpoint, tensor: TensorInfo) -> bool:
    """A bias of the head is tied to nothing."""
    tied = bool(checkpoint.config.get("tie_word_embeddings"))
    return tied and role_of(tensor.name) == "head" and len(tensor.shape) > 1


def misfits(anchor: Checkpoint, other: Checkpoint) -> Iterator[Misfit]:
    """Every reason why two checkpoints are not of one architecture and one vocabulary."""
    pair = f"{anchor.name!r} and {other.name!r}"
    for key in _FUNCTION_KEYS:
        a, b = _setting(anchor, key), _setting(other, key)
        if a is not None and b is not None and a != b:
            what = "architectures" if key == "model_type" else "configurations"
            yield Misfit(
                "architecture" if key == "model_type" else "configuration",
                f"{pair} have different {what}: {key} is {a!r} and {b!r}. Only models "
                "fine-tuned from one base can be merged.",
            )
    for mine, theirs in ((anchor, other), (other, anchor)):
        missing = [
            n
            for n, t in mine.tensors.items()
            if n not in theirs.tensors and t.is_float and not _tied_head(mine, t)
        ]
        if missing:
            yield Misfit(
                "tensors",
                f"{theirs.name!r} lacks {len(missing)} tensor(s) that {mine.name!r} has, the "
                f"first is {missing[0]!r}. Only models of one architecture can be merged.",
            )
    for name, tensor in anchor.tensors.items():
        if name in other.tensors and other.tensors[name].shape != tensor.shape:
            vocab = name in spelled(anchor)
            yield Misfit(
                "vocabulary" if vocab else "shape",
                f"{pair} differ in the shape of {name!r}: {list(tensor.shape)} and "
                f"{list(other.tensors[name].shape)}."
                + (
                    f" Their vocabularies have different sizes. {_REMEDY}"
                    if vocab
                    else " Only models of one shape can be merged."
                ),
            )
    ours, theirs_vocab = anchor.tokens(), other.tokens()
    if ours is not None and theirs_vocab is not None and ours != theirs_vocab:
        token = _first_difference(ours, theirs_vocab)
        yield Misfit(
            "vocabulary",
            f"{pair} have different vocabularies: token {token!r} has id "
            f"{ours.get(token)} and {theirs_vocab.get(token)}. A merge would mix rows of "
            f"the embedding that mean different tokens. {_REMEDY}",
        )


def _first_difference(a: Mapping[str, int], b: Mapping[str, int]) -> str:
    differ = [t for t in {*a, *b} if a.get(t) != b.get(t)]
    return min(differ, key=lambda t: (a.get(t, 1 << 60), t))
