"""What the sparsifying methods keep, and the laws that a search relies on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from evomerge.errors import ConfigError
from evomerge.experts import ExpertPool
from evomerge.materialize import Merger
from evomerge.methods import METHODS, Sources, kernels, ranks
from evomerge.methods.ranks import LEVELS, middle, ranked
from evomerge.space import SearchSpace, load_space
from tests import models

FAMILY = (
    "ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties",
)  # fmt: skip
RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")


def merge(
    name: str,
    delta: torch.Tensor | Sequence[torch.Tensor],
    values: Mapping[str, Sequence[float]],
    keys: tuple[str, ...] = (),
    **fixed: Any,
) -> torch.Tensor:
    """The merged task vector on a base of zeros."""
    deltas = [delta] if isinstance(delta, torch.Tensor) else list(delta)
    chosen = METHODS[name]
    settings = {**chosen.fixed, **fixed}
    base = torch.zeros_like(deltas[0])
    sources = Sources("w", base, deltas, keys)
    basis = chosen.prepare(sources, chosen.survey([sources], settings), settings)
    full = {
        p: values.get(p, [a.default] * (1 if a.shared else len(deltas)))
        for p, a in chosen.parameters.items()
    }
    out = torch.empty_like(base)
    chosen.combine(out, basis, {**full, "lambda": values.get("lambda", [1.0])}, settings)
    return out


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [1, 2, 10, 999, LEVELS])
@pytest.mark.parametrize("density", [0.0, 1e-9, 0.1, 0.3, 0.7, 0.999, 1.0])
@pytest.mark.parametrize("constant", [False, True])
def test_ties_keeps_as_many_as_mergekit(n: int, density: float, constant: bool) -> None:
    """Also where all magnitudes are equal."""
    delta = torch.full((n,), 0.5) if constant else normal(n)
    got = merge("ties", delta, {"weight": [1.0], "density": [density]})
    kept = n if density >= 1 else max(1, int(density * n)) if density > 0 else 0
    assert int(got.count_nonzero()) == kept
    assert torch.equal(got[got != 0], delta[got != 0])
    if 0 < kept < n and not constant:
        assert delta[got != 0].abs().min() >= delta[got == 0].abs().max()


@pytest.mark.parametrize(("density", "gamma"), [(0.9, 0.01), (0.5, 0.3), (0.95, 0.2), (0.0, 0.1)])
def test_breadcrumbs_keeps_the_middle(density: float, gamma: float) -> None:
    delta = normal(1000)
    values = {"weight": [1.0], "density": [density], "gamma": [gamma]}
    got = merge("breadcrumbs", delta, values)
    first = min(int(gamma * 1000), 1000 - int(density * 1000))
    expected = delta.abs().argsort(descending=True)[first : first + int(density * 1000)]
    assert set(got.nonzero().flatten().tolist()) == set(expected.tolist())


def test_large_tensors_resolve_density_to_one_in_65535() -> None:
    n = 300_000
    delta = normal(n)
    for density in (0.1, 0.123456, 0.5):
        got = merge("ties", delta, {"weight": [1.0], "density": [density]})
        assert abs(int(got.count_nonzero()) - density * n) <= n / LEVELS + 1
        assert delta[got != 0].abs().min() >= delta[got == 0].abs().max()


def test_ranks_of_rows() -> None:
    rows = normal(7, 33).abs()
    places = rows.argsort(dim=1).argsort(dim=1)
    assert torch.equal(ranked(rows, descending=False), places.short() - middle(33))


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("at_once", [1 << 20, 1000])
def test_ranks_of_long_rows(
    descending: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In stretches of the magnitudes; ties by position, also where most are equal."""
    monkeypatch.setattr(ranks, "_AT_ONCE", at_once)
    n = 70_001
    for rows in (normal(2, n).abs(), normal(2, n).abs().bfloat16().float(), torch.zeros(2, n)):
        order = rows.argsort(dim=1, descending=descending, stable=True)
        expected = torch.empty(2, n, dtype=torch.int64)
        expected.scatter_(1, order, (torch.arange(n) * LEVELS // n).expand(2, n))
        assert torch.equal(ranked(rows, descending=descending), (expected - middle(n)).short())


@pytest.mark.parametrize("name", RANDOM)
def test_masks_nest_as_density_grows(name: str) -> None:
    delta = normal(40, 50)
    before = torch.zeros(40, 50, dtype=torch.bool)
    counts = []
    for density in (0.0, 0.1, 0.3, 0.5, 0.9, 1.0):
        now = merge(name, delta, {"weight": [1.0], "density": [density]}) != 0
        assert (now | ~before).all()
        before = now
        counts.append(int(now.sum()))
    assert counts[0] == 0
    assert counts[-1] == 2000
    assert counts[2] == pytest.approx(600, abs=100)


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("density", [0.05, 0.3, 0.8])
def test_the_share_kept_is_the_density(name: str, density: float) -> None:
    n = 700_001
    got = merge(name, normal(n), {"weight": [1.0], "density": [density]})
    share = int(got.count_nonzero()) / n
    assert abs(share - density) < 5 * (density * (1 - density) / n) ** 0.5 + 2**-16


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_dropping_keeps_the_expected_value(name: str) -> None:
    delta = normal(20, 30)
    values = {"weight": [1.0], "density": [0.4]}
    mean = sum(merge(name, delta, values, seed=s).double() for s in range(400)) / 400
    noise = delta.double().abs() * ((1 / 0.25 - 1) / 400) ** 0.5  # p >= density - epsilon
    assert ((mean - delta).abs() < 5 * noise).all()


def test_della_keeps_large_entries_more_often() -> None:
    delta = normal(2000, 20)
    kept = merge("della_linear", delta, {"weight": [1.0], "density": [0.5], "epsilon": [0.3]}) != 0
    ranks = delta.abs().argsort(dim=1).argsort(dim=1)
    assert kept[ranks == 0].double().mean() == pytest.approx(0.2, abs=0.05)
    assert kept[ranks == 19].double().mean() == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("name", FAMILY)
def test_same_weights_in_whatever_pieces(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    deltas = [normal(70, 70, seed=s) for s in range(3)]
    whole = merge(name, deltas, {})
    monkeypatch.setattr(kernels.piecewise, "__kwdefaults__", {"whole": None, "size": 1 << 8})
    assert torch.equal(whole, merge(name, deltas, {}))


def test_masks_belong_to_seed_and_content() -> None:
    deltas = [normal(30, 30, seed=s) for s in range(2)]
    one = merge("dare_linear", deltas, {}, keys=("a", "b"))
    swapped = merge("dare_linear", deltas[::-1], {}, keys=("b", "a"))
    assert torch.allclose(one, swapped, atol=1e-6)
    assert not torch.allclose(one, merge("dare_linear", deltas, {}, keys=("a", "c")), atol=0.1)
    assert not torch.allclose(one, merge("dare_linear", deltas, {}, ("a", "b"), seed=1), atol=0.1)


@pytest.mark.parametrize("name", ["ties", "dare_ties", "della", "breadcrumbs_ties"])
def test_paper_election_is_linear_in_the_weights(name: str) -> None:
    deltas = [normal(50, 40, seed=s) for s in range(3)]

    def at(*weights: float) -> torch.Tensor:
        fixed = {"election": "paper", "normalize": False}
        return merge(name, deltas, {"weight": weights}, **fixed)

    a, b = (0.3, 0.9, 0.1), (0.8, -0.2, 0.5)
    both = at(*(2 * x - y for x, y in zip(a, b, strict=True)))
    assert torch.allclose(both, 2 * at(*a) - at(*b), atol=1e-4)


@pytest.mark.parametrize("name", FAMILY)
def test_l1_restores_the_sum_of_magnitudes(name: str) -> None:
    delta = normal(100, 70)
    got = merge(name, delta, {"weight": [1.0], "density": [0.4]}, rescale=True, normalize=False)
    assert int(got.count_nonzero()) < 0.6 * 7000
    assert float(got.abs().sum()) == pytest.approx(float(delta.abs().sum()), rel=1e-5)


@pytest.mark.parametrize("name", ["ties", "breadcrumbs"])
def test_equal_magnitudes_by_position_or_as_torch_sorts_them(name: str) -> None:
    """Changes of 16-bit weights are often equally large, and mergekit keeps what its sort says."""
    n, kept = 999, 499
    delta = (2 * normal(n)).round()
    values = {"weight": [1.0], "density": [0.5], "gamma": [0.0]}
    first = merge(name, delta, values)
    sizes = delta.abs()
    stable = torch.argsort(sizes, descending=True, stable=True)
    assert torch.equal(torch.nonzero(first).view(-1), stable[:kept].sort().values)
    order = (
        torch.argsort(sizes, descending=True) if name == "ties" else torch.argsort(sizes).flip(0)
    )
    torchs = merge(name, delta, values, equal="torch")
    assert torch.equal(torch.nonzero(torchs).view(-1), order[:kept].sort().values)
    assert torch.equal(torchs[torchs != 0], delta[torchs != 0])


def test_sce_takes_all_that_tie_or_what_torch_puts_first() -> None:
    deltas = [torch.full((100,), 0.5), torch.full((100,), 1.5)]
    values = {"select_topk": [0.3]}
    assert int(merge("sce", deltas, values).count_nonzero()) == 100
    torchs = merge("sce", deltas, values, equal="torch")
    chosen = torch.topk(torch.full((100,), 0.25), 30).indices
    assert torch.equal(torch.nonzero(torchs).view(-1), chosen.sort().values)
    assert torch.allclose(torchs[chosen], torch.tensor(0.1 * 0.5 + 0.9 * 1.5))


def test_settings_are_checked() -> None:
    with pytest.raises(
        ConfigError, match=r"ties: fixed.rescale is '1/p'; expected one of none, l1"
    ):
        merge("ties", normal(3), {}, rescale="1/p")
    with pytest.raises(ConfigError, match="expected weighted or paper"):
        merge("della", normal(3), {}, election="count")
    with pytest.raises(ConfigError, match="'last'; expected first"):
        merge("ties", normal(3), {}, equal="last")
    with pytest.raises(ConfigError, match="'first'; expected all"):
        merge("sce", normal(3), {"select_topk": [0.5]}, equal="first")


@pytest.mark.parametrize("name", FAMILY)
def test_its_search_space_merges_a_model(name: str) -> None:
    """The packaged space: loaded, decoded at its start, merged into live tensors."""
    found = models.family("llama", True, "float32")
    pool = ExpertPool.open(
        str(found["base"]), {"a": str(found["expert_a"]), "b": str(found["expert_b"])}
    )
    spec = load_space(name)
    spec["groups"] = {**spec["groups"], "blocks": 2}  # the tiny model has fewer layers
    space = SearchSpace(spec, pool)
    recipe = space.decode(space.start)
    assert recipe.method == name
    out = {t.name: torch.full(t.shape, float("nan")) for t in pool.tensors}
    Merger(pool, name, recipe.fixed).merge(recipe, out)
    changed = 0
    for tensor, merged in out.items():
        base, _ = pool.sources(tensor)
        assert merged.isfinite().all()
        changed += int(not torch.equal(merged, base))
    assert changed > 0.5 * len(out)
