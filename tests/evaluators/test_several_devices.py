"""A model whose layers lie on several devices.

No machine here has two GPUs. Fake tensors (torch's own, for its compiler) know shapes and devices
and refuse what real ones refuse: to compute with tensors of two devices. ``cpu:1`` and ``cpu:2``
stand for the GPUs.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from accelerate import dispatch_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM

from evomerge.evaluators.batches import Batch, Packing
from evomerge.evaluators.likelihoods import Likelihoods

FIRST, SECOND = "cpu:1", "cpu:2"
PLACES = {
    "model.embed_tokens": FIRST, "model.rotary_emb": FIRST, "model.layers.0": FIRST,
    "model.layers.1": SECOND, "model.norm": SECOND, "lm_head": SECOND,
}  # fmt: skip
CONFIG = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip


class OneDeviceEach(TorchDispatchMode):
    """Refuses to index with what lies on another device: that is allowed on CPUs alone."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.index.Tensor:
            devices = {str(t.device) for t in tree_leaves(args) if isinstance(t, torch.Tensor)}
            assert len(devices) == 1, devices
        return func(*args, **(kwargs or {}))


def spread_model() -> LlamaForCausalLM:
    """As transformers loads it with a ``device_map``; inside a FakeTensorMode."""
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).eval()
    for name, device in PLACES.items():
        for module in model.get_submodule(name).modules():
            for key, tensor in module._parameters.items():
                if tensor is not None:
                    there = torch.empty(tensor.shape, device=device)
                    module._parameters[key] = torch.nn.Parameter(there)
            for key, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[key] = torch.empty(buffer.shape, device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the data pointers that accelerate looks at
        return dispatch_model(model, PLACES, main_device=FIRST, force_hooks=True)


def test_scoring_where_the_output_layer_lies_elsewhere() -> None:
    with FakeTensorMode(), OneDeviceEach(), torch.no_grad():
        model = spread_model()
        scorer = Likelihoods(model, Packing(64, "auto", torch.device(FIRST), 64))
        scorer._last.usable = True
        tokens = torch.zeros(2, 8, dtype=torch.long, device=FIRST)
        at = torch.zeros(3, dtype=torch.long, device=FIRST)
        batch = Batch(tokens, tokens, tokens, at, at, at, at, torch.zeros(3))
        with scorer.hooked(model):
            found = scorer._forward(model, batch, greedy=True)
    assert [(t.shape, str(t.device)) for t in found] == [((3,), FIRST)] * 2
