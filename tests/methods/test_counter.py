"""Counter-based uniforms: a function of (key, offset), and random enough for masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from evomerge.methods.counter import Key, bits, halves, key, shifted, uniforms


def by_numpy(of: Key, start: int, n: int) -> np.ndarray:
    """The same hash in unsigned arithmetic, from the definition."""
    i = np.arange(start, start + n, dtype=np.uint64)
    with np.errstate(over="ignore"):
        x = (i & 0xFFFFFFFF).astype(np.uint32) * np.uint32(0x9E3779B9)
        x += np.uint32(of.first & 0xFFFFFFFF)
        x ^= x >> np.uint32(16)
        x *= np.uint32(0x7FEB352D)
        x ^= np.uint32(of.second & 0xFFFFFFFF) ^ (i >> 32).astype(np.uint32)
        x ^= x >> np.uint32(15)
        x *= np.uint32(0x846CA68B)
        x ^= x >> np.uint32(16)
    return x


@pytest.mark.parametrize("start", [0, 1_000_003, 2**31 - 7, 2**32 - 7, 5 * 2**32 + 1])
def test_equals_the_definition_in_unsigned_arithmetic(start: int, device: torch.device) -> None:
    of = key(7, "layers.0.mlp.weight")
    got = bits(of, start, 1000, device).cpu().numpy().view(np.uint32)
    assert np.array_equal(got, by_numpy(of, start, 1000))


def test_known_answer() -> None:
    """The same on every machine, for ever: recipes depend on it."""
    assert key("seed", 0) == Key(first=2107979121, second=1819648813)
    expected = [0.3385910987854004, 0.22472989559173584, 0.05516815185546875]
    assert uniforms(key("seed", 0), 0, 3).tolist() == expected


def test_two_entries_share_a_hash(device: torch.device) -> None:
    """The lower half first, as a signed number plus 2^15; the same for ever."""
    of = key(7, "layers.0.mlp.weight")
    both = by_numpy(of, 0, 500)
    expected = np.stack([both & 0xFFFF, both >> 16], axis=1).reshape(-1) ^ 0x8000
    for n in (0, 1, 2, 999, 1000):
        assert np.array_equal(halves(of, n, device).cpu().numpy(), expected[:n])
    assert halves(key("seed", 0), 4).tolist() == [26782, 54957, 26364, 47495]


def test_pieces_fit_together(device: torch.device) -> None:
    whole = uniforms(key("k"), 0, 1000, device)
    parts = [uniforms(key("k"), s, 250, device) for s in range(0, 1000, 250)]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("start", [0, 3 << 14, (1 << 32) - 512, 1 << 32, (7 << 32) + 999])
def test_a_shifted_stream_starts_further_on(start: int) -> None:
    of = key("k", 3)
    moved = shifted(of, start)
    assert all(-(1 << 31) <= half < 1 << 31 for half in (moved.first, moved.second))
    assert torch.equal(bits(moved, 0, 256), bits(of, start, 256))


def test_uniform_and_independent() -> None:
    n = 1 << 18
    streams = [uniforms(key("seed", i), 0, n).double().numpy() for i in range(6)]
    for u in streams:
        assert 0 <= u.min() < 1e-4
        assert 1 - 1e-4 < u.max() < 1
        assert stats.kstest(u, "uniform").pvalue > 1e-4
        for lag in (1, 2, 64, 1024, 4096):
            assert abs(np.corrcoef(u[:-lag], u[lag:])[0, 1]) < 5 / np.sqrt(n)
    correlations = np.corrcoef(streams)[np.triu_indices(6, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(n)


def test_16_bits_are_uniform_and_independent() -> None:
    """Of neighbours, which may share a hash, of entries further on, and of experts."""
    n = 1 << 20
    streams = [halves(key("0", f"expert {i}", "w"), n).double().numpy() for i in range(4)]
    for u in streams:
        assert (u.min(), u.max()) == (0, 65_535)
        counts = np.bincount(u.astype(np.int64) >> 8, minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-4
        for lag in (1, 2, 3, 64, 768, 4096):
            assert abs(np.corrcoef(u[:-lag], u[lag:])[0, 1]) < 5 / np.sqrt(n)
        assert abs(np.corrcoef(u[::2], u[1::2])[0, 1]) < 5 / np.sqrt(n / 2)
        for p in (0.05, 0.3, 0.5, 0.9):
            kept = u < p * 65_536
            assert abs(kept.mean() - p) < 5 * np.sqrt(p * (1 - p) / n) + 2**-16
            pairs = np.bincount(2 * kept[::2] + kept[1::2], minlength=4) / (n / 2)
            expected = np.array([(1 - p) ** 2, (1 - p) * p, p * (1 - p), p * p])
            assert (np.abs(pairs - expected) < 6 * np.sqrt(expected / (n / 2)) + 2**-15).all()
    correlations = np.corrcoef(streams)[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(n)


def test_streams_are_not_shifts_of_each_other() -> None:
    a, b = (bits(key("seed", i), 0, 1 << 16).numpy() for i in range(2))
    assert np.intersect1d(a, b).size < 20  # 1 expected by chance
