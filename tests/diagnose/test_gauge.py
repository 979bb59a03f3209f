"""The gauge check on real checkpoints: outputs unchanged, weights far away, and told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from evomerge.diagnose import diagnose
from evomerge.diagnose.gauge import Gauge, gauge
from evomerge.diagnose.verdicts import hidden
from evomerge.experts import ExpertPool
from tests import models
from tests.diagnose import variants

CASES = [(a, p, k) for a in variants.REWRITABLE for p in ("VO", "QK") for k in ("scale", "turn")]


def checked(base: Path, *experts: Path) -> Gauge:
    return gauge(ExpertPool.open(str(base), {f"e{i}": str(e) for i, e in enumerate(experts)}))


@pytest.mark.parametrize(("arch", "pair", "kind"), CASES)
def test_rewritten_weights_are_exposed(arch: str, pair: str, kind: str, tmp_path: Path) -> None:
    family = models.family(arch)
    locked = variants.copy(family["expert_a"], tmp_path / "locked")
    before = variants.logits(locked)
    variants.rewrite(locked, arch, pair, kind)
    after = variants.logits(locked)
    assert float((after - before).norm() / before.norm()) < 1e-4, "it computes the same"

    other = "VO" if pair == "QK" else "QK"
    found = checked(family["base"], family["expert_a"], locked)
    plain, mine = found.change[pair][:, 0], found.change[pair][:, 1]
    assert hidden(mine).all(), "the factors are far from the base's"
    assert not hidden(plain).any()
    assert mine[:, 1] == pytest.approx(plain[:, 1], rel=1e-3), "the products are the expert's"
    assert found.change[other][:, 1] == pytest.approx(found.change[other][:, 0], rel=1e-6)
    assert not found.skipped
    assert found.layers == (0, 1, 2, 3)


@pytest.mark.parametrize("arch", variants.REWRITABLE)
def test_merging_a_rewritten_expert_destroys_it(arch: str, tmp_path: Path) -> None:
    """The damage at one half is larger than all that the expert brings there.

    Of values and outputs: random models attend to everything alike, whatever their queries.
    """
    family = models.family(arch)
    locked = variants.copy(family["expert_a"], tmp_path / "locked")
    variants.rewrite(locked, arch, "VO", "turn")
    base = load_file(family["base"] / "model.safetensors")
    found = []
    for expert in (family["expert_a"], locked):
        mine = load_file(expert / "model.safetensors")
        merged = variants.copy(family["base"], tmp_path / f"merged-{len(found)}")
        variants.edit(merged, lambda t, m=mine: t.update({n: (base[n] + m[n]) / 2 for n in t}))
        found.append(variants.logits(merged))
    gain = float((found[0] - variants.logits(family["base"])).norm())
    damage = float((found[1] - found[0]).norm())
    assert damage > gain


@pytest.mark.parametrize("arch", variants.REWRITABLE)
def test_random_changes_are_seen_in_the_products(arch: str) -> None:
    """Theory: a relative change a of one factor and b of the other gives sqrt(a^2 + b^2)."""
    found = checked(models.family(arch)["base"], models.family(arch)["expert_a"])
    for change in found.change.values():
        ratio = change[..., 1] / change[..., 0]
        assert (ratio > 1).all(), "the threshold, 1 / HIDDEN, is far below"
        assert (ratio < 2).all()


@pytest.mark.parametrize("pair", ["VO", "QK"])
def test_products_are_what_they_are_called(pair: str) -> None:
    """Against the d x d products written out, for one head of a Llama with grouped heads."""
    folders = models.family("llama")
    found = checked(folders["base"], folders["expert_a"])
    pool = ExpertPool.open(str(folders["base"]), {"a": str(folders["expert_a"])})

    def full(checkpoint) -> list[torch.Tensor]:
        w = {
            k: checkpoint.tensor(f"model.layers.1.self_attn.{k}_proj.weight").double()
            for k in "qkvo"
        }
        made = []
        for h in range(variants.HEADS):
            rows = slice(h * 8, h * 8 + 8)
            shared = slice(h // 2 * 8, h // 2 * 8 + 8)
            if pair == "VO":
                made.append(w["o"][:, rows] @ w["v"][shared])
                continue
            q, k = w["q"][rows], w["k"][shared]
            for j in range(4):  # what the scores are at angle 0 and at a quarter turn
                made.append(torch.outer(q[j], k[j]) + torch.outer(q[j + 4], k[j + 4]))
                made.append(torch.outer(q[j], k[j + 4]) - torch.outer(q[j + 4], k[j]))
        return made

    base, mine = full(pool.base), full(pool.experts[0])
    moved = sum(float((m - b).square().sum()) for m, b in zip(mine, base, strict=True))
    expected = (moved / sum(float(b.square().sum()) for b in base)) ** 0.5
    assert found.change[pair][1, 0, 1] == pytest.approx(expected, rel=1e-9)


def test_a_transform_that_breaks_rotary_positions_is_no_gauge(tmp_path: Path) -> None:
    """W_q R, W_k R^-T with any R keeps W_q W_k^T but not what a rotary model computes."""
    family = models.family("llama")
    broken = variants.copy(family["expert_a"], tmp_path / "broken")
    before = variants.logits(broken)
    random = torch.Generator().manual_seed(0)

    def change(tensors) -> None:
        for name in [n for n in tensors if n.endswith("k_proj.weight")]:
            q = name.replace("k_proj", "q_proj")
            m = torch.linalg.qr(torch.randn(8, 8, generator=random))[0]
            for t in (name, q):
                tensors[t] = (m @ tensors[t].reshape(-1, 8, tensors[t].shape[1])).reshape(
                    tensors[t].shape
                )

    variants.edit(broken, change)
    assert float((variants.logits(broken) - before).norm() / before.norm()) > 1e-3
    qk = checked(family["base"], broken).change["QK"][:, 0]
    assert not hidden(qk).any()
    assert np.all(qk[:, 1] > 0.5)


def test_what_is_not_known_is_not_checked(tmp_path: Path) -> None:
    family = models.family("llama")
    folders = [variants.copy(family[n], tmp_path / n) for n in ("base", "expert_a")]
    for folder in folders:
        variants.edit_config(folder, model_type="mystery")
    found = diagnose(str(folders[0]), {"a": str(folders[1])}).gauge
    assert found is not None
    assert set(found.change) == {"VO"}, "values and outputs need no knowledge of positions"
    assert "mystery" in found.skipped["QK"]
    for folder in folders:
        variants.edit(folder, lambda t: t.update({
            n.replace("o_proj", "dense"): t.pop(n) for n in list(t) if "o_proj" in n
        }))  # fmt: skip
    found = diagnose(str(folders[0]), {"a": str(folders[1])}).gauge
    assert found is not None
    assert not found.change
    assert set(found.skipped) == {"QK", "VO"}
