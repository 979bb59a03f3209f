"""What PEFT makes of LoRA adapters: the expected values of tests/test_adapter.py.

    python benchmarks/golden/make_lora.py tests/golden/lora

Run it in an environment with ``peft`` (made with peft 0.21.2, transformers 5.12, torch 2.13). Per
architecture: a tiny base, two adapters with what differs between adapters in practice (ranks,
alphas, rsLoRA, embeddings, full copies), each merged alone (``merge_and_unload``), and, where PEFT
can, both by ``add_weighted_adapter(..., combination_type="cat")``.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

WEIGHTS = (0.7, 0.4)
TOKENS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
CASES: dict[str, tuple[Any, dict[str, dict[str, Any]]]] = {
    "llama": (
        LlamaConfig(
            vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=False, **TOKENS,
        ),
        {
            "a": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]},
            "b": {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj", "down_proj"]},
        },
    ),
    "mixed": (
        LlamaConfig(
            vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=False, **TOKENS,
        ),
        {
            "a": {
                "r": 4, "lora_alpha": 8, "use_rslora": True,
                "target_modules": ["q_proj", "up_proj"],
                "rank_pattern": {"up_proj": 3}, "alpha_pattern": {"layers.1.self_attn.q_proj": 2},
            },
            "b": {
                "r": 3, "lora_alpha": 6, "target_modules": ["o_proj", "embed_tokens"],
                "modules_to_save": ["lm_head"],
            },
        },
    ),
    "gpt2": (
        GPT2Config(vocab_size=48, n_embd=16, n_layer=1, n_head=2, n_positions=16, **TOKENS),
        {
            "a": {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn"], "fan_in_fan_out": True},
            "b": {"r": 4, "lora_alpha": 4, "target_modules": ["c_attn"], "fan_in_fan_out": True},
        },
    ),
}  # fmt: skip


def build(name: str, out: Path) -> None:
    """Writes base, adapters and expected weights of one case below ``out``."""
    config, adapters = CASES[name]
    torch.manual_seed(len(name))
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    model.save_pretrained(out / "base")
    for adapter, settings in adapters.items():
        fresh = AutoModelForCausalLM.from_pretrained(out / "base").float()
        chosen = LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **settings)
        wrapped = get_peft_model(fresh, chosen)
        with torch.no_grad():
            for n, p in wrapped.named_parameters():
                if "lora_" in n or "modules_to_save" in n:
                    p.add_(torch.randn_like(p) * 0.2)
        wrapped.save_pretrained(out / adapter)
        (out / adapter / "README.md").unlink(missing_ok=True)
        keep(wrapped.merge_and_unload(), out / f"{adapter}.safetensors")
    if name != "mixed":  # PEFT wants the same target modules
        both = AutoModelForCausalLM.from_pretrained(out / "base").float()
        wrapped = PeftModel.from_pretrained(both, out / "a", adapter_name="a")
        wrapped.load_adapter(out / "b", adapter_name="b")
        wrapped.add_weighted_adapter(["a", "b"], list(WEIGHTS), "ab", combination_type="cat")
        wrapped.set_adapter("ab")
        keep(wrapped.merge_and_unload(), out / "ab.safetensors")


def keep(model: Any, path: Path) -> None:
    """Saves the model as transformers does, without its configuration."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        shutil.copyfile(Path(folder) / "model.safetensors", path)


if __name__ == "__main__":
    for case in CASES:
        build(case, Path(sys.argv[1]) / case)
