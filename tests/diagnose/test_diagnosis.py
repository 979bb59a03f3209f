"""What the doctor says of sets with one thing wrong, each a real checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.diagnose import Diagnosis, Finding, diagnose
from evomerge.diagnose.vectors import task_vectors
from evomerge.errors import ConfigError
from evomerge.experts import ExpertPool
from tests import models
from tests.diagnose import variants


def examine(base: Path, **experts: Path) -> Diagnosis:
    found = diagnose(str(base), {n: str(p) for n, p in experts.items()})
    text = json.dumps(found.to_json(), allow_nan=False)
    assert json.loads(text)["headline"] == found.headline
    if "base" not in found.blocked:
        assert set(found.mergeable) | set(found.blocked) == set(experts)
    return found


def only(found: Diagnosis, model: str, *, blocks: bool = True) -> Finding:
    """The one finding of a model, which must be the only one that is blocked."""
    assert found.blocked == ((model,) if blocks else ())
    (finding,) = [f for f in found.findings if f.model == model]
    assert finding.blocks == blocks
    assert repr(model) in finding.text
    assert finding.remedy
    return finding


@pytest.fixture
def family() -> dict[str, Path]:
    return models.family()


@pytest.mark.parametrize("arch", models.ARCHS)
@pytest.mark.parametrize("tie", [True, False])
def test_a_compatible_set(arch: str, tie: bool) -> None:
    f = models.family(arch, tie)
    found = examine(f["base"], a=f["expert_a"], b=f["expert_b"])
    assert found.headline == "Yes: these 2 experts can be merged."
    assert found.findings == ()
    assert found.mergeable == ("a", "b")
    assert found.advice is not None
    assert (found.advice.method, found.advice.space) == ("task_arithmetic", "global")
    one = examine(f["base"], a=f["expert_a"])
    assert one.headline == "Yes: this expert can be merged with its base."


def test_another_architecture(family: dict[str, Path]) -> None:
    other = models.family("qwen2")["expert_a"]
    found = examine(family["base"], a=family["expert_a"], odd=other)
    assert only(found, "odd").kind == "architecture"
    assert "'llama' and 'qwen2'" in only(found, "odd").text
    assert found.headline == (
        "Not all of them: 'odd' (architecture) cannot be merged as it is; 'a' can."
    )
    assert found.advice is not None, "the rest is examined nevertheless"
    assert found.vectors is not None
    assert found.vectors.names == ("a",)


def test_same_architecture_but_not_from_this_base(family: dict[str, Path], tmp_path: Path) -> None:
    other = models.build_family(tmp_path / "other", seed=7)["expert_a"]
    found = examine(family["base"], a=family["expert_a"], odd=other)
    finding = only(found, "odd")
    assert finding.kind == "not from this base"
    assert "was not fine-tuned from it" in finding.text


def test_layers_trained_anew(family: dict[str, Path], tmp_path: Path) -> None:
    """Or their units in another order, which is the same to a merge."""
    odd = variants.copy(family["expert_a"], tmp_path / "odd")
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))

    def permute(tensors: variants.Tensors) -> None:
        for name in [n for n in tensors if ".mlp." in n]:
            tensors[name] = tensors[name][:, order] if "down" in name else tensors[name][order]

    before = variants.logits(odd)
    variants.edit(odd, permute)
    assert torch.allclose(variants.logits(odd), before, atol=1e-5), "it computes the same"
    finding = only(examine(family["base"], a=family["expert_b"], odd=odd), "odd")
    assert finding.kind == "partly foreign"
    assert "not those of its mlp" in finding.text


@pytest.mark.parametrize("rows", [4, 0])
def test_added_tokens(rows: int, family: dict[str, Path], tmp_path: Path) -> None:
    """With rows of their own, and in rows that the base has spare."""
    base = family["base"]
    odd = variants.add_tokens(family["expert_a"], tmp_path / "odd", n=3, rows=rows)
    finding = only(examine(base, a=family["expert_b"], odd=odd), "odd")
    assert finding.kind == "added tokens"
    assert "3 token(s) that the base has not ('<|new_0|>', '<|new_1|>'" in finding.text
    assert "every other token has the same id" in finding.text
    assert ("304 rows where the base has 300" in finding.text) == bool(rows)
    assert "models.tokenizer=odd if the tasks need its tokens" in finding.remedy
    experts = {"a": str(family["expert_b"]), "odd": str(odd)}
    for tokenizer in ("odd", "base"):  # the remedy helps
        assert ExpertPool.open(str(base), experts, tokenizer=tokenizer).spelling == tokenizer


def test_another_vocabulary(family: dict[str, Path], tmp_path: Path) -> None:
    odd = variants.copy(family["expert_a"], tmp_path / "odd")
    data = json.loads((odd / "tokenizer.json").read_text())
    vocab = data["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (odd / "tokenizer.json").write_text(json.dumps(data))
    finding = only(examine(family["base"], a=family["expert_b"], odd=odd), "odd")
    assert finding.kind == "other vocabulary"
    assert "2 of the base's" in finding.text


@pytest.mark.parametrize("arch", variants.REWRITABLE)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("pair", ["VO", "QK"])
def test_rewritten_factors(arch: str, dtype: str, pair: str, tmp_path: Path) -> None:
    """Also where the transformed weights were rounded once more."""
    f = models.family(arch)
    odd = variants.rewrite(variants.copy(f["expert_a"], tmp_path / "odd"), arch, pair, "turn")
    base, other = f["base"], f["expert_b"]
    if dtype == "bfloat16":
        folders = {"base": base, "b": other, "odd": odd}
        for name, folder in folders.items():
            target = folder if name == "odd" else variants.copy(folder, tmp_path / name)
            variants.edit(target, lambda t: t.update({n: x.bfloat16() for n, x in t.items()}))
            folders[name] = target
        base, other = folders["base"], folders["b"]
    finding = only(examine(base, a=other, odd=odd), "odd")
    assert finding.kind == "re-parametrised"
    assert "computes what a fine-tune of the base computes" in finding.text
    assert "Merging it as it is will destroy it" in finding.text
    assert ("W_v and W_o" if pair == "VO" else "W_q and W_k") in finding.text
    assert "every layer" in finding.text


def test_the_base_as_an_expert(family: dict[str, Path], tmp_path: Path) -> None:
    """The same folder, a copy, and the same weights in another file."""
    copy = variants.copy(family["base"], tmp_path / "copy")
    other = variants.edit(variants.copy(family["base"], tmp_path / "file"), lambda t: None)
    tensors = load_file(other / "model.safetensors")
    save_file(tensors, other / "model.safetensors", metadata={"note": "another file"})
    for odd in (family["base"], copy, other):
        finding = only(examine(family["base"], a=family["expert_a"], odd=odd), "odd")
        assert finding.kind == "equal to the base"
    alone = examine(family["base"], odd=copy)
    assert alone.headline == "No: 'odd' (equal to the base) cannot be merged as it is."
    assert alone.advice is None


def test_listed_twice(family: dict[str, Path], tmp_path: Path) -> None:
    copy = variants.copy(family["expert_a"], tmp_path / "copy")
    finding = only(examine(family["base"], a=family["expert_a"], odd=copy), "odd")
    assert finding.kind == "listed twice"
    assert "'a'" in finding.text


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_nan(value: str, family: dict[str, Path], tmp_path: Path) -> None:
    odd = variants.copy(family["expert_a"], tmp_path / "odd")
    variants.edit(odd, lambda t: t["model.norm.weight"][:1].fill_(float(value)))
    found = examine(family["base"], a=family["expert_b"], odd=odd)
    assert found.blocked == ("odd",)
    assert found.findings[0].kind == "NaN or Inf"
    assert "model.norm.weight" in found.findings[0].text


def test_every_model_gets_its_reasons(family: dict[str, Path], tmp_path: Path) -> None:
    """The pool stops at the first problem; the doctor does not."""
    quantised = variants.copy(family["expert_a"], tmp_path / "quantised")
    variants.edit_config(quantised, quantization_config={"quant_method": "gptq"})
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "adapter_model.safetensors").write_bytes(b"")
    deep = models.build_family(tmp_path / "deep", layers=5)["expert_a"]
    wide = models.build_family(tmp_path / "wide", hidden=64)["expert_a"]
    found = examine(
        family["base"],
        a=family["expert_a"],
        quantised=quantised,
        lora=lora,
        gone=tmp_path / "nowhere",
        odd=models.family("gpt2")["base"],
        deep=deep,
        wide=wide,
    )
    kinds = {f.model: f.kind for f in reversed(found.findings)}
    assert kinds == {
        "quantised": "quantised",
        "lora": "unreadable",
        "gone": "unreadable",
        "odd": "architecture",
        "deep": "tensors",
        "wide": kinds["wide"],
    }
    assert kinds["wide"] in {"configuration", "shape"}
    assert [f.model for f in found.findings if f.model == "odd"] == ["odd"], "once is enough"
    assert found.mergeable == ("a",)


def test_adapters_are_experts_too() -> None:
    golden = Path(__file__).parent.parent / "golden" / "lora" / "llama"
    found = examine(golden / "base", a=golden / "a", b=golden / "b")
    assert found.mergeable == ("a", "b")
    assert found.vectors is not None
    assert found.vectors.moved.tolist() == [16 * 16 + 8 * 16 + 16 * 24] * 2, "q, v, down_proj"


def test_a_base_that_cannot_be_used(family: dict[str, Path], tmp_path: Path) -> None:
    found = examine(tmp_path / "nowhere", a=family["expert_a"], odd=tmp_path / "gone")
    assert found.headline == "Nothing can be merged: the base cannot be used."
    assert found.blocked == ("base", "odd")
    assert found.mergeable == ()


def test_no_experts(family: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="at least one expert"):
        diagnose(str(family["base"]), {})


# ------------------------------------------------------------------ what it will be like


def scaled(family: dict[str, Path], out: Path, factor: float, layer: str = "") -> Path:
    """expert_a with its task vector multiplied, everywhere or where a name contains ``layer``."""
    base = load_file(family["base"] / "model.safetensors")
    return variants.edit(
        variants.copy(family["expert_a"], out),
        lambda t: t.update({
            n: base[n] + factor * (x - base[n]) for n, x in t.items() if layer in n
        }),
    )  # fmt: skip


def test_one_expert_moved_much_further(family: dict[str, Path], tmp_path: Path) -> None:
    near = scaled(family, tmp_path / "near", 0.05)
    found = examine(family["base"], b=family["expert_a"], near=near)
    kinds = {f.model: (f.kind, f.text) for f in found.findings}
    assert kinds["near"][0] == kinds["b"][0] == "uneven"
    assert "20.0 times less than the other" in kinds["near"][1]
    assert "20.0 times further than the other" in kinds["b"][1]


def test_an_outlying_layer(family: dict[str, Path], tmp_path: Path) -> None:
    """4 layers; one's MLP moved a tenth of the others', one's attention not at all."""
    odd = scaled(family, tmp_path / "odd", 0.1, "layers.2.mlp")
    base = load_file(family["base"] / "model.safetensors")
    variants.edit(
        odd, lambda t: t.update({n: base[n].clone() for n in t if "layers.1.self_attn" in n})
    )
    finding = only(examine(family["base"], b=family["expert_b"], odd=odd), "odd", blocks=False)
    assert finding.kind == "outlier"
    assert "layers.1.attention did not move" in finding.text
    assert "layers.2.mlp 0.1 times" in finding.text
    assert "2 layer group(s)" in finding.text


def test_far_from_the_base(family: dict[str, Path], tmp_path: Path) -> None:
    far = scaled(family, tmp_path / "far", 5.5)
    found = examine(family["base"], far=far)
    assert [f.kind for f in found.findings] == ["far from the base"]


def test_statistics_are_those_of_the_weights(family: dict[str, Path]) -> None:
    """Norms, cosines and sign conflicts, written naively."""
    pool = ExpertPool.open(
        str(family["base"]), {"a": str(family["expert_a"]), "b": str(family["expert_b"])}
    )
    v = task_vectors(pool)
    base, experts = pool.base, pool.experts
    deltas = [
        torch.cat([
            (e.tensor(t.name).double() - base.tensor(t.name).double()).reshape(-1)
            for t in pool.tensors
        ])
        for e in experts
    ]  # fmt: skip
    whole = torch.cat([base.tensor(t.name).double().reshape(-1) for t in pool.tensors])
    assert v.overall == pytest.approx([float(d.norm() / whole.norm()) for d in deltas])
    a, b = deltas
    assert v.cosines[0, 1] == pytest.approx(float(a @ b / a.norm() / b.norm()), abs=1e-9)
    conflict = float((a * b < 0).sum() / ((a != 0) & (b != 0)).sum())
    assert v.overall_conflict == pytest.approx(conflict)
    assert conflict == pytest.approx(np.arccos(v.cosines[0, 1]) / np.pi, abs=0.02), "Gaussian"
    assert v.moved.tolist() == [float((d != 0).sum()) for d in deltas]
    assert v.likeness("mlp").min() > 0.9
    name = "layers.2.mlp"
    (g,) = [i for i, group in enumerate(v.groups) if group.group.name == name]
    parts = [t for t in pool.tensors if f"{name}." in t.name]
    delta = sum(
        float((experts[0].tensor(t.name).double() - base.tensor(t.name).double()).square().sum())
        for t in parts
    )
    size = sum(float(base.tensor(t.name).double().square().sum()) for t in parts)
    assert v.relative[g, 0] == pytest.approx((delta / size) ** 0.5)


@pytest.mark.parametrize(("sign", "word"), [(1.0, "point the same way"), (-1.0, "pull against")])
def test_advice_follows_the_angle(
    sign: float, word: str, family: dict[str, Path], tmp_path: Path
) -> None:
    other = scaled(family, tmp_path / "other", 0.7 * sign)
    found = examine(family["base"], a=family["expert_a"], b=other)
    assert found.vectors is not None
    assert found.vectors.cosines[0, 1] == pytest.approx(sign)
    assert found.vectors.overall_conflict == pytest.approx((1 - sign) / 2, abs=1e-3)
    assert found.advice is not None
    assert any(word in reason for reason in found.advice.reasons)
    assert ("optimizer=nsga2" in found.advice.overrides) == (sign < 0)


def test_rounding_is_foretold(tmp_path: Path) -> None:
    """Against a merge of the whole models at 0.4; and silent where nothing is rounded."""
    f = models.build_family(tmp_path / "near", n_experts=1, dtype="bfloat16", noise=1e-4)
    found = examine(f["base"], a=f["expert_a"])
    finding = only(found, "a", blocks=False)
    assert finding.kind == "rounding"
    assert "rounding=dither" in finding.remedy
    assert found.advice is not None
    assert "space.fixed.rounding=dither" in found.advice.overrides
    assert found.realised is not None
    got = wanted = 0.0
    base, mine = (load_file(f[n] / "model.safetensors") for n in ("base", "expert_a"))
    for name, b in base.items():
        step = 0.4 * (mine[name].float() - b.float())
        cast = (b.float() + step).bfloat16().float() - b.float()
        got, wanted = got + float((cast * step).sum()), wanted + float((step * step).sum())
    assert found.realised[0, 2] == pytest.approx(0.4 * got / wanted, rel=0.02)
    assert f"0.4 becomes {found.realised[0, 2]:.2f}" in finding.text

    wide = models.build_family(tmp_path / "wide", n_experts=1, noise=1e-4)
    assert examine(wide["base"], a=wide["expert_a"]).realised is None


def test_another_dtype_is_worth_a_note(tmp_path: Path, family: dict[str, Path]) -> None:
    odd = variants.copy(family["expert_a"], tmp_path / "odd")
    variants.edit(odd, lambda t: t.update({n: x.half() for n, x in t.items()}))
    found = examine(family["base"], b=family["expert_b"], odd=odd)
    assert found.blocked == ()
    assert [(f.model, f.kind) for f in found.findings] == [("odd", "dtype")]
    assert "float16, the base as float32" in found.findings[0].text
    shutil.rmtree(odd)
