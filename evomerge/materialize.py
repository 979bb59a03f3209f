"""Recipe -> weights, in place, at the speed of memory.

A :class:`Merger` holds what does not depend on the candidate (the survey and the prepared basis of
every tensor); ``merge_tensor`` writes one merged tensor. A :class:`LiveModel` is a Hugging Face
model whose parameters a Merger overwrites for every candidate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from evomerge.errors import CheckpointError, ConfigError
from evomerge.experts import ExpertPool
from evomerge.methods import Basis, Sources, check_range, check_settings, method, usual_settings
from evomerge.methods.low_rank import LowRank, Source
from evomerge.methods.rounding import NARROW, dither_into
from evomerge.placement import place
from evomerge.prepared import PreparedCache
from evomerge.recipe import Recipe, Scalar

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ALL_GPUS = "cuda:all"
"""Device of a model that is spread over all visible GPUs."""


class Merger:
    """Merges the tensors of one pool by one method.

    What is prepared lies where the live tensor does; on the CPU it stays in the mapped files.

    Args:
        pool: Where the tensors come from.
        name: Merge method.
        fixed: Its settings that are not searched.
        cache: Folder where what is prepared is found, and kept for other workers and the next
            search (:mod:`evomerge.prepared`); None: in this Merger's memory only.
        keep: Whether what is not there yet is kept.

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
        cache: Path | None = None,
        *,
        keep: bool = True,
    ) -> None:
        self.pool = pool
        self.method = method(name)
        check_settings(name, fixed, has_base=pool.base is not None, n_experts=len(pool.experts))
        self.fixed: Mapping[str, Scalar] = {**usual_settings(name), **fixed}
        self._cache = None
        if cache is not None:
            everyone = [pool.base.content if pool.base else "", *(e.content for e in pool.experts)]
            self._cache = PreparedCache(cache, everyone, name, self.fixed, write=keep)
        self._survey = self._cache.survey(self._surveyed) if self._cache else self._surveyed()
        self._basis: dict[str, Basis] = {}

    def _sources(self, tensor: str) -> Sources:
        base = self.pool.base.tensor(tensor) if self.pool.base else None
        thin = base is not None and getattr(self.method, "low_rank", False)
        experts: list[Source] = []
        for expert in self.pool.experts:
            pair = expert.low_rank(tensor) if thin else None
            experts.append(
                LowRank(base, *pair) if base is not None and pair else expert.tensor(tensor)
            )
        return Sources(tensor, base, experts, tuple(e.content for e in self.pool.experts))

    def _surveyed(self) -> Any:
        return self.method.survey((self._sources(t.name) for t in self.pool.tensors), self.fixed)

    def _prepared(self, tensor: str, device: torch.device) -> Basis:
        basis = self._basis.get(tensor) or self._prepare(tensor, device)
        assert basis is not None  # noqa: S101 - it waited
        return basis

    def _prepare(self, tensor: str, device: torch.device, *, wait: bool = True) -> Basis | None:
        """Prepares a tensor; None where another worker is at it and ``wait`` is off."""
        sources = self._sources(tensor)

        def make() -> Basis:
            return self.method.prepare(sources, self._survey, self.fixed)

        if self._cache:
            models = [*([] if sources.base is None else [sources.base]), *sources.experts]
            basis = self._cache.basis(tensor, models, make, wait=wait)
        else:
            basis = make()
        if basis is not None:
            basis = dataclasses.replace(basis, tensors=_moved(basis.tensors, device))
            self._basis[tensor] = basis
        return basis

    def merge_tensor(
        self, tensor: str, coefficients: Mapping[str, Sequence[float]], out: torch.Tensor
    ) -> None:
        """Writes one merged tensor into ``out`` (the tensor's shape; always on one device).

        An ``out`` narrower than fp32 is rounded as the recipe says (``fixed.rounding``): to
        nearest by the method itself, or dithered from an fp32 scratch of the tensor's size.
        """
        dithered = self.fixed["rounding"] == "dither" and out.dtype in NARROW
        exact = torch.empty_like(out, dtype=torch.float32) if dithered else out
        self.method.combine(exact, self._prepared(tensor, out.device), coefficients, self.fixed)
        if dithered:
            dither_into(out, exact, tensor)

    def forget(self, tensor: str) -> None:
        """Drops one tensor's prepared basis: an export visits every tensor once."""
        self._basis.pop(tensor, None)

    def merge(self, recipe: Recipe, out: Mapping[str, torch.Tensor]) -> None:
        """Writes every tensor of a recipe into ``out`` (tensor name to live tensor)."""
        with torch.no_grad():
            if not self._basis:  # workers that start together share the work
                for name, live in out.items():
                    self._prepare(name, live.device, wait=False)
            for tensor, coefficients in rows(recipe):
                if tensor in out:
                    self.merge_tensor(tensor, coefficients, out[tensor])


def _moved(tensors: Sequence[Source], device: torch.device) -> tuple[Source, ...]:
    """The same on a device; memory that several share is moved once."""
    known: dict[tuple[Any, ...], torch.Tensor] = {}

    def once(tensor: torch.Tensor) -> torch.Tensor:
        key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if key not in known:
            known[key] = tensor.to(device)
        return known[key]

    return tuple(
        LowRank(once(t.base), t.left.to(device), t.right.to(device))
        if isinstance(t, LowRank)
        else once(t)
        for t in tensors
    )


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
    base = pool.base.ref if pool.base else None
    for want, got in zip((*recipe.models, recipe.base), (*pool.refs, base), strict=True):
        if want and got and want.content and got.content and want.content != got.content:
            raise ConfigError(
                f"the recipe was made with other weights for {want.name!r} (sha256 "
                f"{want.content[:12]}...) than those found now ({got.content[:12]}...)."
            )
    if recipe.tokenizer != pool.spelling:
        raise ConfigError(
            f"the recipe is written for the tokenizer of {recipe.tokenizer or 'its base'!r}, the "
            f"models were opened with that of {pool.spelling or 'the base'!r}."
        )
    if set(recipe.coefficients) != set(chosen.parameters):
        raise ConfigError(
            f"recipe for {recipe.method!r}: expected the parameters "
            f"{sorted(chosen.parameters)}, got {sorted(recipe.coefficients)}."
        )
    for name, matrix in recipe.coefficients.items():
        low, high = float(matrix.min()), float(matrix.max())
        check_range(f"coefficients of {name!r}", chosen.parameters[name], low, high)
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
        device: Where it lives; ``"cuda:all"``: layer by layer over all GPUs that are visible, for
            a model that does not fit one. They work one after another.
        dtype: ``"auto"`` (as the base was saved), ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        trust_remote_code: Passed to transformers; off unless the user asks.

    Raises:
        ConfigError: The device is not there, or is too small.
        CheckpointError: transformers cannot load it, or a parameter that no tensor of the
            checkpoint fills.
    """

    def __init__(
        self,
        pool: ExpertPool,
        device: torch.device | str = "cpu",
        dtype: str = "auto",
        *,
        trust_remote_code: bool = False,
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

        folder = str(pool.anchor.folder)
        both = pool.anchor.config.get("is_encoder_decoder")
        spread = {"device_map": _device_map()} if str(device) == ALL_GPUS else {}
        try:
            model = (AutoModelForSeq2SeqLM if both else AutoModelForCausalLM).from_pretrained(
                folder,
                dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                **spread,
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        except (OSError, ValueError, RuntimeError, KeyError, ImportError) as e:
            raise CheckpointError(f"transformers cannot load {folder}: {e}") from e
        try:
            self.model: PreTrainedModel = _settled(model, None if spread else device)
        except (RuntimeError, AssertionError) as e:  # torch without CUDA asserts
            reason = str(e).strip().partition("\n")[0]
            raise ConfigError(f"device {str(device)!r} cannot hold the model: {reason}.") from e
        self.tokenizer: PreTrainedTokenizerBase = tokenizer
        self.tensors = place(self.model, pool)

    @property
    def devices(self) -> set[torch.device]:
        """Where its weights are."""
        return {t.device for t in self.tensors.values()}


def _device_map() -> str:
    """The ``device_map`` for an even distribution of layers over the GPUs.

    Raises:
        ConfigError: There is none.
    """
    if not torch.cuda.is_available():
        raise ConfigError(f"device '{ALL_GPUS}': no GPU is visible here.")
    return "balanced"


def _settled(model: Any, device: torch.device | str | None) -> Any:
    if device is not None:
        model = model.to(device)
    elif any(p.is_meta for p in model.parameters()):  # accelerate left them on the disk
        raise RuntimeError("all GPUs together are too small")
    return model.eval().requires_grad_(False)  # noqa: FBT003
