"""mergekit's whole pipeline on a tiny Llama, against reading its YAML and merging here.

The expected values were written by benchmarks/golden/mergekit_pipeline.py with mergekit 0.1.5.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from evomerge.experts import ExpertPool
from evomerge.materialize import Merger
from evomerge.mergekit import from_mergekit

FOLDER = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "mergekit_pipeline.npz") as data:
        return dict(data)


@pytest.fixture(scope="module")
def folders(arrays, tmp_path_factory) -> dict[str, Path]:
    """The models as checkpoints."""
    found = {}
    for model in ("BASE", "A", "B"):
        found[model] = folder = tmp_path_factory.mktemp(model)
        (folder / "config.json").write_bytes(arrays["config"].tobytes())
        tensors = {
            key.split("/", 1)[1]: torch.from_numpy(value)
            for key, value in arrays.items()
            if key.startswith(f"{model}/")
        }
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return found


@pytest.mark.parametrize("config", sorted(p.stem for p in FOLDER.glob("*.yaml")))
def test_equals_mergekit(config: str, arrays, folders) -> None:
    text = (FOLDER / f"{config}.yaml").read_text()
    for model, folder in folders.items():
        text = text.replace(model if model == "BASE" else f"@{model}", str(folder))
    recipe = from_mergekit(text).recipe
    pool = ExpertPool.open(
        recipe.base.path if recipe.base else None, {m.name: m.path for m in recipe.models}
    )
    out = {t.name: torch.full(t.shape, float("nan")) for t in pool.tensors}
    Merger(pool, recipe.method, recipe.fixed).merge(recipe, out)
    expected = {k.split("/", 1)[1]: v for k, v in arrays.items() if k.startswith(f"{config}/")}
    assert expected.keys() == out.keys()
    for name, value in expected.items():
        error = np.abs(out[name].double().numpy() - value.astype(np.float64)).max()
        assert error <= 1e-6 * np.abs(arrays[f"A/{name}"]).max(), name
