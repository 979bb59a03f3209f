"""Recipe -> weights, in place, at the speed of memory.

A :class:`Merger` holds what does not depend on the candidate (the survey and the prepared basis of
every tensor); ``merge_tensor`` writes one merged tensor. A :class:`LiveModel` is a Hugging Face
model whose parameters a Merger overwrites for every candidate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from evomerge.errors import CheckpointError, ConfigError
from evomerge.experts import ExpertPool, MergeTensor
from evomerge.methods import Basis, Sources, check_settings, method
from evomerge.recipe import Recipe, Scalar

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Merger:
    """Merges the tensors of one pool by one method.

    Args:
        pool: Where the tensors come from.
        name: Merge method.
        fixed: Its settings that are not searched.
        device: Where the basis lies. On the CPU it stays in the mapped files.

    Raises:
        UnknownNameError: No such method.
        ConfigError: An unknown fixed setting, no base where the method needs one, or another
            number of experts than it takes.
    """

    def __init__(
        self,
        pool: ExpertPool,
        name: str,
        fixed: Mapping[str, Scalar],
        device: torch.device | str = "cpu",
    ) -> None:
        self.pool = pool
        self.method = method(name)
        check_settings(name, fixed, has_base=pool.base is not None, n_experts=len(pool.experts))
        self.fixed: Mapping[str, Scalar] = {**self.method.fixed, **fixed}
        self._device = torch.device(device)
        self._survey = self.method.survey(
            (self._sources(t.name) for t in pool.tensors), self.fixed
        )
        self._basis: dict[str, Basis] = {}

    def _sources(self, tensor: str) -> Sources:
        base, experts = self.pool.sources(tensor)
        return Sources(tensor, base, experts, tuple(e.content for e in self.pool.experts))

    def _prepared(self, tensor: str) -> Basis:
        basis = self._basis.get(tensor)
        if basis is None:
            basis = self.method.prepare(self._sources(tensor), self._survey, self.fixed)
            moved = tuple(b.to(self._device) for b in basis.tensors)
            basis = dataclasses.replace(basis, tensors=moved)
            self._basis[tensor] = basis
        return basis

    def merge_tensor(
        self, tensor: str, coefficients: Mapping[str, Sequence[float]], out: torch.Tensor
    ) -> None:
        """Writes one merged tensor into ``out`` (the tensor's shape; on this Merger's device)."""
        self.method.combine(out, self._prepared(tensor), coefficients, self.fixed)

    def forget(self, tensor: str) -> None:
        """Drops one tensor's prepared basis: an export visits every tensor once."""
        self._basis.pop(tensor, None)

    def merge(self, recipe: Recipe, out: Mapping[str, torch.Tensor]) -> None:
        """Writes every tensor of a recipe into ``out`` (tensor name to live tensor)."""
        with torch.no_grad():
            for tensor, coefficients in rows(recipe):
                if tensor in out:
                    self.merge_tensor(tensor, coefficients, out[tensor])


def rows(recipe: Recipe) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """Tensor name and its coefficients (parameter to K or 1 floats), for every tensor."""
    for g, group in enumerate(recipe.groups):
        coefficients = {name: matrix[g].tolist() for name, matrix in recipe.coefficients.items()}
        for tensor in group.tensors:
            yield tensor, coefficients


def check_recipe(recipe: Recipe, pool: ExpertPool) -> None:
    """Raises ConfigError unless the recipe fits the pool: models, tensors, parameters."""
    chosen = method(recipe.method)
    check_settings(
        recipe.method, recipe.fixed, has_base=pool.base is not None, n_experts=len(pool.experts)
    )
    if len(recipe.models) != len(pool.experts):
        raise ConfigError(
            f"the recipe merges {len(recipe.models)} experts, the pool has {len(pool.experts)}."
        )
    for want, got in zip((*recipe.models, recipe.base), (*pool.refs, pool.base), strict=True):
        if want and got and want.content and got.content and want.content != got.content:
            raise ConfigError(
                f"the recipe was made with other weights for {want.name!r} (sha256 "
                f"{want.content[:12]}...) than those found now ({got.content[:12]}...)."
            )
    if set(recipe.coefficients) != set(chosen.parameters):
        raise ConfigError(
            f"recipe for {recipe.method!r}: expected the parameters "
            f"{sorted(chosen.parameters)}, got {sorted(recipe.coefficients)}."
        )
    ours = {t.name for t in pool.tensors}
    theirs = {t for g in recipe.groups for t in g.tensors}
    if ours != theirs:
        odd = min(ours ^ theirs)
        raise ConfigError(
            f"the recipe's groups must cover every tensor of the models exactly once; "
            f"{len(ours ^ theirs)} differ, the first is {odd!r}."
        )


class LiveModel:
    """A model in memory whose weights are overwritten for every candidate.

    Args:
        pool: The models.
        device: Where it lives.
        dtype: ``"auto"`` (as the base was saved), ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        trust_remote_code: Passed to transformers; off unless the user asks.

    Raises:
        CheckpointError: transformers cannot load it, or its parameters do not match the
            checkpoint's tensors one to one.
    """

    def __init__(
        self,
        pool: ExpertPool,
        device: torch.device | str = "cpu",
        dtype: str = "auto",
        *,
        trust_remote_code: bool = False,
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = str(pool.anchor.folder)
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        except (OSError, ValueError, RuntimeError, KeyError) as e:
            raise CheckpointError(f"transformers cannot load {folder}: {e}") from e
        self.model: PreTrainedModel = _settled(model, device)
        self.tokenizer: PreTrainedTokenizerBase = tokenizer
        self.device = torch.device(device)
        self.tensors = match_parameters(self.model, pool.tensors)


def _settled(model: Any, device: torch.device | str) -> Any:
    return model.to(device).eval().requires_grad_(False)  # noqa: FBT003


def match_parameters(model: Any, tensors: Sequence[MergeTensor]) -> dict[str, torch.Tensor]:
    """Checkpoint tensor name to the live tensor that holds it.

    Names agree, or differ by the base-model prefix (``transformer.``, ``model.``). A tied head is
    one live tensor with the embedding and need not appear in the checkpoint. A tensor that the
    model does not have (a stored rotary table, say) has no counterpart and is left out.

    Raises:
        CheckpointError: A live parameter that no merged tensor writes.
    """
    live: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    live |= dict(model.named_buffers(remove_duplicate=False))
    # Old GPT-2 files store causal masks as floats; the model's own are booleans and stay.
    live = {name: t for name, t in live.items() if t.is_floating_point()}
    prefix = getattr(model, "base_model_prefix", "") + "."
    found: dict[str, torch.Tensor] = {}
    for tensor in tensors:
        name = tensor.name
        for candidate in (name, prefix + name, name.removeprefix(prefix)):
            if candidate in live and tuple(live[candidate].shape) == tensor.shape:
                found[name] = live[candidate].data
                break
    written = {t.data_ptr() for t in found.values()}
    lost = [n for n, p in model.named_parameters() if p.data_ptr() not in written]
    if lost:
        raise CheckpointError(
            f"{len(lost)} parameter(s) of {type(model).__name__} have no tensor of the same name "
            f"and shape in the checkpoint, the first is {lost[0]!r}. Architectures that "
            "transformers renames or fuses while loading (mixtures of experts) are not supported "
            "yet."
        )
    return found
