"""How large a zoo to build: one frozen table of settings."""

from __future__ import annotations

from dataclasses import dataclass

from evomerge.errors import ConfigError

DOMAINS = ("code", "prose", "math")
"""The three domains; each has one expert, one log-likelihood and one accuracy task."""


@dataclass(frozen=True)
class Size:
    """Everything that shapes a zoo besides the Python and torch versions.

    Attributes:
        hidden: Width of the model.
        layers: Number of decoder blocks.
        intermediate: Width of the MLP.
        vocabulary: Number of byte-level BPE tokens, special tokens included.
        batch: Rows in a training batch.
        row: Tokens in a training row.
        base_steps: Optimizer steps of the base.
        base_rate: Peak learning rate of the base.
        base_mixture: Share of the rows that each domain gives, in the order of `DOMAINS`.
        expert_steps: Optimizer steps of each expert, in the order of `DOMAINS`.
        expert_rates: Peak learning rate of each expert, in the order of `DOMAINS`.
        own_share: Share of an expert's rows that come from its own domain; the rest is
            drawn from the other two in equal parts.
        corpus_bytes: At most this many bytes of training text per domain.
        n_documents: Documents per task.
    """

    hidden: int
    layers: int
    intermediate: int
    vocabulary: int
    batch: int
    row: int
    base_steps: int
    base_rate: float
    base_mixture: tuple[float, float, float]
    expert_steps: tuple[int, int, int]
    expert_rates: tuple[float, float, float]
    own_share: float
    corpus_bytes: int
    n_documents: int


SIZES: dict[str, Size] = {
    "tiny": Size(
        hidden=32,
        layers=2,
        intermediate=64,
        vocabulary=320,
        batch=8,
        row=64,
        base_steps=20,
        base_rate=8e-3,
        base_mixture=(0.42, 0.42, 0.16),
        expert_steps=(6, 6, 6),
        expert_rates=(2e-3, 2e-3, 2e-3),
        own_share=0.8,
        corpus_bytes=60_000,
        n_documents=60,
    ),
    "small": Size(
        hidden=128,
        layers=4,
        intermediate=352,
        vocabulary=1024,
        batch=16,
        row=96,
        base_steps=650,
        base_rate=4e-3,
        base_mixture=(0.43, 0.43, 0.14),
        expert_steps=(190, 190, 190),
        expert_rates=(7e-4, 7e-4, 1e-3),
        own_share=0.8,
        corpus_bytes=3_000_000,
        n_documents=600,
    ),
    "medium": Size(
        hidden=192,
        layers=6,
        intermediate=512,
        vocabulary=2048,
        batch=24,
        row=96,
        base_steps=1500,
        base_rate=3e-3,
        base_mixture=(0.43, 0.43, 0.14),
        expert_steps=(350, 350, 350),
        expert_rates=(6e-4, 6e-4, 6e-4),
        own_share=0.8,
        corpus_bytes=6_000_000,
        n_documents=1000,
    ),
}


def find_size(name: str) -> Size:
    """Look a size up by name.

    Args:
        name: A key of `SIZES`.

    Returns:
        Its settings.

    Raises:
        ConfigError: No size has that name.
    """
    if name not in SIZES:
        raise ConfigError(f"unknown zoo size {name!r}: expected one of {', '.join(SIZES)}")
    return SIZES[name]
