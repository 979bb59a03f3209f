"""PCB-Merging."""

from __future__ import annotations

import pytest
import torch

from evomerge.errors import ConfigError
from evomerge.methods import METHODS, Sources
from tests.methods import formulas_beyond
from tests.methods.merging import merged, prepared, toy

WEIGHT = [1.2, 0.9, 1.0]


@pytest.mark.parametrize("ratio", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("outliers", [0.0, 0.01])
def test_equals_the_naive_formula(ratio, outliers) -> None:
    base, experts = toy((30, 40), dtype=torch.float32)
    settings = {"ratio": ratio, "outliers": outliers}
    wide = base.double(), [e.double() for e in experts]
    expected = formulas_beyond.pcb(*wide, {"weight": WEIGHT}, **settings)
    found = merged("pcb", base, experts, {"weight": WEIGHT}, **settings)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


def test_is_linear_in_the_weights() -> None:
    base, experts = toy((30, 40))
    one = merged("pcb", base, experts, {"weight": WEIGHT}, ratio=0.5)
    two = merged("pcb", base, experts, {"weight": [2 * w for w in WEIGHT]}, ratio=0.5)
    assert not torch.equal(one, base)
    torch.testing.assert_close(two - base, 2 * (one - base))


def test_thresholds_are_of_the_whole_model() -> None:
    """Cut into three tensors of different shapes, a model merges like one long vector."""
    base, experts = toy((1200,))
    whole = merged("pcb", base, experts, {"weight": WEIGHT}, ratio=0.3)
    cuts = [(slice(0, 600), (20, 30)), (slice(600, 601), ()), (slice(601, 1200), (599,))]
    pieces = [
        Sources(f"t{i}", base[part].view(shape), [e[part].view(shape) for e in experts])
        for i, (part, shape) in enumerate(cuts)
    ]
    chosen, fixed = METHODS["pcb"], {**METHODS["pcb"].fixed, "ratio": 0.3}
    survey = chosen.survey(iter(pieces), fixed)
    for piece, (part, _) in zip(pieces, cuts, strict=True):
        out = torch.empty_like(piece.base)
        chosen.combine(out, chosen.prepare(piece, survey, fixed), {"weight": WEIGHT}, fixed)
        torch.testing.assert_close(out.reshape(-1), whole[part])


def test_one_expert_keeps_what_it_has_most_of() -> None:
    """Alone, its scores cancel: kept entries are the clipped task vector, all others the base."""
    base, experts = toy((500,), k=1, dtype=torch.float32)
    found = merged("pcb", base, experts, {"weight": [1.0]}, ratio=0.2, outliers=0.0)
    changed = found != base
    assert int(changed.sum()) == 99  # a fifth, less the one that sets the threshold
    torch.testing.assert_close(found[changed], experts[0][changed])
    assert (experts[0] - base)[changed].abs().min() > (experts[0] - base)[~changed].abs().max()


def test_disagreement_loses() -> None:
    """Where the sum of the task vectors points the other way, the balance is negative."""
    base = torch.zeros(4)
    experts = [torch.tensor([1.0, 0.9, 0.1, 0.2]), torch.tensor([1.0, -2.0, 0.1, 0.2])]
    _, first = prepared("pcb", base, experts, ratio=0.8, outliers=0.0).tensors[:2]
    assert first[0] > 0
    assert first[1] == 0


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match=r"fixed\.ratio"):
        METHODS["pcb"].survey(iter([]), {"ratio": 0.0, "outliers": 0.0})
