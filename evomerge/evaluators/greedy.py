"""What may be decoded by a loop of our own: plain greedy search over keys and values.

Everything here is read off the model's class and configuration, before any candidate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import DynamicCache, GenerationMixin
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation.configuration_utils import GenerationMode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MACHINERY = (
    "generate",
    "_sample",
    "_prefill",
    "prepare_inputs_for_generation",
    "_update_model_kwargs_for_generation",
    "_prepare_cache_for_generation",
    "_prepare_position_ids_for_generation",
)
"""What a model class must have from transformers unchanged for the loop here to be the same."""


def layers_of(lm: Any) -> int | None:
    """Number of the model's layers if its generation is transformers' own over keys and values.

    None for encoder-decoders, recurrent states, chunked attention, classes that change how
    generation works, and code that does not come from transformers.
    """
    model = lm.model
    kind = type(model)
    if lm.backend != "causal" or lm.think_end_token is not None:
        return None
    if not kind.__module__.startswith("transformers.") or getattr(kind, "_is_stateful", False):
        return None
    if any(getattr(kind, name) is not getattr(GenerationMixin, name) for name in _MACHINERY):
        return None
    if not kind._supports_default_dynamic_cache():
        return None
    config = model.config.get_text_config(decoder=True)
    if getattr(config, "attention_chunk_size", None) is not None:
        return None
    layers = DynamicCache(config=config).layers
    if any(type(layer) not in {DynamicLayer, DynamicSlidingWindowLayer} for layer in layers):
        return None
    return len(layers)


def narrowest_window(lm: Any) -> float:
    """Columns that the narrowest sliding window sees."""
    config = lm.model.config.get_text_config(decoder=True)
    layers = DynamicCache(config=config).layers
    return min(getattr(layer, "sliding_window", float("inf")) for layer in layers)


def greedy_ends(lm: Any, given: dict[str, Any]) -> frozenset[int] | None:
    """Token ids that end an answer, or None if more than taking the likeliest token is asked for.

    Args:
        lm: lm-eval's view of the model.
        given: Normalised generation settings without ``until`` and ``max_gen_toks``.
    """
    model = lm.model
    settings = {k: v for k, v in given.items() if k not in {"do_sample", "temperature"}}
    if given.get("do_sample") is not False or lm.eot_token_id is None:
        return None
    config, rest = model._prepare_generation_config(
        None, do_sample=False, use_cache=True, pad_token_id=lm.tokenizer.pad_token_id, **settings
    )
    model._prepare_special_tokens(config, device="cpu", batch_size=1)
    plain = (
        not rest
        and "max_length" not in settings
        and config.get_generation_mode() == GenerationMode.GREEDY_SEARCH
        and (config.num_return_sequences or 1) == 1
        and config.cache_implementation in {None, "dynamic"}
        and not config.prefill_chunk_size
        and not config.token_healing
        and config.max_time is None
        and config.stop_strings is None
        and not config.return_dict_in_generate
    )
    if not plain or model._get_logits_processor(config, 1, device="cpu", model_kwargs={}):
        return None
    ends = config._eos_token_tensor
    return frozenset() if ends is None else frozenset(ends.tolist())


def bytes_per_token(model: PreTrainedModel) -> int:
    """Size of a token's keys and values in all layers."""
    config = model.config.get_text_config(decoder=True)
    heads = int(config.num_attention_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    return int(2 * config.num_hidden_layers * kept * width * model.dtype.itemsize)
