"""Models of different vocabularies, read in the vocabulary of one of them.

Chat models add tokens to their base's vocabulary, so that embedding and head have more rows, or
the same ids mean other tokens. Rows are matched by token: a model read in another's vocabulary
has, for each of its tokens, its own row of that token. A token that it lacks gets the base's row,
or where the base lacks it, too, the mean of those that have it (mergekit's ``tokenizer_source``
does the same). So a token that one model alone has keeps that model's row in any merge.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from evomerge.cache import appearing, cache_folder
from evomerge.checkpoint import Checkpoint
from evomerge.errors import CheckpointError, ConfigError, unknown_name
from evomerge.recipe import ModelRef
from evomerge.roles import layer_of, role_of

if TYPE_CHECKING:
    import torch

Rows = npt.NDArray[np.int64]
_POSITION = re.compile(r"wpe|position")
_ALIKE = 0.5
"""Share of the smaller vocabulary that two models must have in common to be of one family."""


@dataclasses.dataclass(frozen=True, eq=False)
class Respelled(Checkpoint):
    """A checkpoint whose embedding and head stand in another model's vocabulary.

    Attributes:
        own: The checkpoint as it is.
        takes: Models that rows come from, :attr:`own` among them.
        rows: (models in ``takes``, rows of the vocabulary): the row to take from each, or -1. A
            new row is the mean of those that are not -1.
    """

    own: Checkpoint = dataclasses.field(kw_only=True)
    takes: tuple[Checkpoint, ...] = dataclasses.field(kw_only=True)
    rows: Rows = dataclasses.field(kw_only=True)

    @property
    def ref(self) -> ModelRef:
        """The checkpoint as recipes name it: as it lies there. A recipe names the vocabulary."""
        return self.own.ref

    @property
    def as_stored(self) -> Checkpoint:
        """See :attr:`Checkpoint.as_stored`."""
        return self.own

    def tokens(self) -> dict[str, int] | None:
        """None: they were matched, and there is nothing left to compare."""
        return None

    def tensor(self, name: str) -> torch.Tensor:
        """As :meth:`Checkpoint.tensor`; a copy in the cache folder where rows had to move."""
        if name not in spelled(self.own):
            return self.own.tensor(name)
        return self._moved[name]

    def low_rank(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """As :meth:`Checkpoint.low_rank`; None for embedding and head."""
        return None if name in spelled(self.own) else self.own.low_rank(name)

    @functools.cached_property
    def _moved(self) -> Mapping[str, torch.Tensor]:
        """Embedding and head: mapped from the cache folder, where workers share them."""
        from safetensors.torch import load_file, save_file

        names = [n for n in spelled(self.own) if all(n in c.tensors for c in self.takes)]
        if not self.content:  # of models that were not audited: no name to be found by
            return {name: self._gathered(name) for name in names}
        path = cache_folder() / "respelled" / f"{self.content}.safetensors"
        if not path.is_file():
            with appearing(path) as part:
                save_file({name: self._gathered(name) for name in names}, part)
        return load_file(path)

    def _gathered(self, name: str) -> torch.Tensor:
        import torch

        like = self.own.tensor(name)
        total = torch.zeros((self.rows.shape[1], *like.shape[1:]), dtype=torch.float32)
        for model, rows in zip(self.takes, self.rows, strict=True):
            to = torch.from_numpy(np.flatnonzero(rows >= 0))
            if len(to):
                total.index_add_(0, to, model.tensor(name)[torch.from_numpy(rows)[to]].float())
        givers = torch.from_numpy((self.rows >= 0).sum(axis=0))
        return (total / givers.view(-1, *[1] * (total.ndim - 1))).to(like.dtype)

    def __getstate__(self) -> dict[str, object]:
        """Open files stay behind; another process maps them anew."""
        return {k: v for k, v in self.__dict__.items() if k not in {"_files", "_moved"}}


def respelled(models: Sequence[Checkpoint], tokenizer: str) -> list[Checkpoint]:
    """The same models, all in the vocabulary of one of them.

    Args:
        models: Of one architecture; ``"base"``, if there is one, is where missing rows come from.
        tokenizer: Name of the model whose vocabulary it is.

    Returns:
        In the order given; a model whose rows stand as they should is returned as it is.

    Raises:
        ConfigError: No model of that name, or it is an adapter, whose vocabulary is its base's.
        CheckpointError: A model without ``tokenizer.json``, or of another family of tokenizers.
    """
    named = {c.name: c for c in models}
    if tokenizer not in named:
        raise unknown_name("model in models.tokenizer", tokenizer, named)
    if not (named[tokenizer].folder / "config.json").is_file():
        raise ConfigError(
            f"models.tokenizer: {tokenizer!r} is an adapter and has its base's vocabulary; "
            f"expected one of {', '.join(n for n in named if n != tokenizer)}."
        )
    tokens = {c.name: _tokens(c) for c in models}
    for name, theirs in tokens.items():
        _check_family(tokenizer, tokens[tokenizer], name, theirs)
    size = {c.name: n_rows(c) for c in models}
    wanted = _tokens_by_id(tokens[tokenizer], size[tokenizer])
    donors = {name: _rows_of(wanted, t, size[name]) for name, t in tokens.items()}
    return [
        c if tokens[c.name] == tokens[tokenizer] and size[c.name] == size[tokenizer]
        else _respell(c, models, donors)
        for c in models
    ]  # fmt: skip


def _respell(
    own: Checkpoint, models: Sequence[Checkpoint], donors: Mapping[str, Rows]
) -> Respelled:
    mine = donors[own.name]
    lacking = mine < 0
    rows = np.full((len(models), len(mine)), -1, dtype=np.int64)
    in_base = donors["base"] >= 0 if "base" in donors else np.zeros_like(lacking)
    for i, model in enumerate(models):
        theirs = donors[model.name]
        if model is own:
            rows[i] = mine
        elif model.name == "base":
            rows[i, lacking & in_base] = theirs[lacking & in_base]
        else:
            rows[i, lacking & ~in_base] = theirs[lacking & ~in_base]
    used = [i for i, r in enumerate(rows) if (r >= 0).any()]
    takes, rows = tuple(models[i] for i in used), rows[used]
    moving = set(spelled(own))
    tensors = {
        n: dataclasses.replace(t, shape=(len(mine), *t.shape[1:])) if n in moving else t
        for n, t in own.tensors.items()
    }
    return Respelled(
        own.name, own.source, own.folder, own.config, tensors, _content(own, takes, rows),
        own=own, takes=takes, rows=rows,
    )  # fmt: skip


def _content(own: Checkpoint, takes: Sequence[Checkpoint], rows: Rows) -> str:
    """What identifies the rows, in whatever folder the models lie; empty where theirs is."""
    parts = [c.content for c in (own, *takes)]
    return hashlib.sha256("\n".join(parts).encode() + rows.tobytes()).hexdigest() * all(parts)


def n_rows(checkpoint: Checkpoint) -> int:
    """Rows of the token embedding, tokens and padding; 0 where there is no embedding."""
    for name, tensor in checkpoint.tensors.items():
        if role_of(name) == "embedding" and layer_of(name) is None and not _POSITION.search(name):
            return tensor.shape[0]
    return 0


def spelled(checkpoint: Checkpoint) -> list[str]:
    """Names of the tensors that have a row for each token: embedding and head."""
    n = n_rows(checkpoint)
    return [
        name
        for name, t in checkpoint.tensors.items()
        if role_of(name) in {"embedding", "head"}
        and layer_of(name) is None
        and t.shape[:1] == (n,)
        and not _POSITION.search(name)
    ]


def _tokens(checkpoint: Checkpoint) -> Mapping[str, int]:
    tokens = checkpoint.tokens()
    if not tokens:
        raise CheckpointError(
            f"{checkpoint.name!r} has no tokenizer.json that can be read, so its rows cannot be "
            "matched by token. Load its tokenizer with transformers (AutoTokenizer) and "
            f"save_pretrained() it into {checkpoint.folder}."
        )
    return tokens


def _check_family(
    name: str, ours: Mapping[str, int], other: str, theirs: Mapping[str, int]
) -> None:
    share = len(ours.keys() & theirs.keys()) / min(len(ours), len(theirs))
    if share < _ALIKE:
        raise CheckpointError(
            f"{name!r} and {other!r} have {share:.0%} of their tokens in common: their tokenizers "
            "are of different families. Only models fine-tuned from one base can be merged."
        )


def _tokens_by_id(tokens: Mapping[str, int], n: int) -> list[str | None]:
    """The token of each of n rows; None for padding."""
    found: list[str | None] = [None] * n
    for token, i in tokens.items():
        if i < n:
            found[i] = token
    return found


def _rows_of(wanted: Sequence[str | None], tokens: Mapping[str, int], n: int) -> Rows:
    """A model's row for each row of the vocabulary, -1 where it has none.

    Padding, which no token uses, stays where it is.
    """
    taken = set(tokens.values())
    free = [-1 if i in taken or i >= n else i for i in range(len(wanted))]
    rows = [free[i] if t is None else tokens.get(t, -1) for i, t in enumerate(wanted)]
    return np.array([r if r < n else -1 for r in rows], dtype=np.int64)
