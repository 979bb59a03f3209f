"""mergekit's whole pipeline on a tiny Llama: the expected values of tests/test_mergekit_golden.py.

    python benchmarks/golden/mergekit_pipeline.py tests/golden/mergekit_pipeline.npz

Run it in an environment of mergekit's own (mergekit 0.1.5; it needs nothing of evomerge). It
writes the random models (two layers, 8 wide) and what mergekit-yaml makes of them by the
configurations beside the output file, ``*.yaml``, in which BASE, @A and @B stand for the models'
folders.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.torch import load_file, save_file

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8,
    "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 16, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    "max_position_embeddings": 32, "tie_word_embeddings": False, "torch_dtype": "float32",
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


def shapes() -> dict[str, tuple[int, ...]]:
    layer = {
        "self_attn.q_proj": (8, 8), "self_attn.k_proj": (4, 8), "self_attn.v_proj": (4, 8),
        "self_attn.o_proj": (8, 8), "mlp.gate_proj": (16, 8), "mlp.up_proj": (16, 8),
        "mlp.down_proj": (8, 16), "input_layernorm": (8,), "post_attention_layernorm": (8,),
    }  # fmt: skip
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens": (16, 8)}
    for i in range(2):
        found |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    found |= {"model.norm": (8,), "lm_head": (16, 8)}
    return {f"{name}.weight": shape for name, shape in found.items()}


def main() -> None:
    out = Path(sys.argv[1])
    random = torch.Generator().manual_seed(0)
    base = {n: torch.randn(s, generator=random) for n, s in shapes().items()}
    models = {"BASE": base}
    for name in ("A", "B"):
        models[name] = {
            n: t + 0.2 * torch.randn(t.shape, generator=random) for n, t in base.items()
        }
    arrays: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folders = {name: Path(temporary) / name for name in models}
        for name, folder in folders.items():
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(CONFIG))
            save_file(models[name], folder / "model.safetensors", metadata={"format": "pt"})
            arrays |= {f"{name}/{n}": t.numpy() for n, t in models[name].items()}
        for config in sorted(out.parent.glob("*.yaml")):
            data = yaml.safe_load(place(config.read_text(), folders))
            merged = Path(temporary) / f"merged-{config.stem}"
            options = MergeOptions(copy_tokenizer=False, write_model_card=False)
            run_merge(MergeConfiguration.model_validate(data), str(merged), options)
            for file in merged.glob("*.safetensors"):
                for name, tensor in load_file(file).items():
                    arrays[f"{config.stem}/{name}"] = tensor.numpy()
    arrays["config"] = np.frombuffer(json.dumps(CONFIG).encode(), dtype=np.uint8)
    np.savez_compressed(out, **arrays)
    print(f"wrote {out}")


def place(text: str, folders: dict[str, Path]) -> str:
    """The configuration with folders in place of BASE, @A and @B."""
    for name, folder in folders.items():
        text = text.replace(name if name == "BASE" else f"@{name}", str(folder))
    return text


if __name__ == "__main__":
    main()
