"""What is measured on the answers of any task, beside the task's own metrics.

``output_tokens``
    Mean number of tokens in a generating task's answers: the price of a chain of thought.

``collapse``
    Share of documents whose answer looks like that of a broken model, whatever the task asks: a
    guard, as an objective or (``bound: 0.05``) as a constraint. 0 or 1 per document.

    A generated answer is broken if it is empty; if more than a tenth of it are replacement
    characters, control characters, private or unassigned code points; or if its end repeats
    itself: zlib makes its last 256 bytes more than four times smaller, or its last 1024 more than
    six times. Greedy decoding that falls into a loop stays there (Holtzman et al. 2020, "The
    Curious Case of Neural Text Degeneration"), so the end shows it. The measure is Whisper's
    (Radford et al. 2022, Section 4.5: text that gzip makes 2.4 times smaller is decoded again);
    the thresholds are higher here, because code and tables compress, too: of 1,700 pieces of
    source code, prose and JSON 0.2% exceeded the first and none the second, while a loop of words
    is seen after 60 bytes, one of sentences after 150, one of paragraphs in the
    longer piece. N-gram rules as for web text (Gopher, Rae et al. 2021, Table A1) presuppose long
    documents. Running into ``max_gen_toks`` is no sign by itself: it cuts good answers, too.

    For likelihoods a document is broken if the best of its continuations is less likely, per
    token, than under a uniform distribution over the vocabulary, or its likelihood is no number.

Logits that are not finite end the trial (it is FAILED), with or without this metric.
"""

from __future__ import annotations

import math
import unicodedata
import zlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

OUTPUT_TOKENS = "output_tokens"
COLLAPSE = "collapse"

LOOPS = {256: 4.0, 1024: 6.0}
"""Bytes at the end of an answer to their size over that after zlib from which on it is a loop."""

GIBBERISH_SHARE = 0.1
"""Share of characters that nobody can read from which on an answer is gibberish."""

_UNREADABLE = frozenset({"Cc", "Cs", "Co", "Cn"})
"""Unicode's control characters, surrogates, private and unassigned code points."""


def beside(output_type: str) -> tuple[str, ...]:
    """The metrics of this file that a task with such requests has."""
    return (COLLAPSE, OUTPUT_TOKENS) if output_type == "generate_until" else (COLLAPSE,)


def measure(
    metrics: Collection[str],
    instances: Sequence[Any],
    length: Callable[[str], int],
    n_vocabulary: int,
) -> dict[str, float]:
    """Measures the answers to one document.

    Args:
        metrics: Which of :func:`beside`'s.
        instances: Everything that was asked about the document, with answers in ``resps``.
        length: Counts the tokens of a text.
        n_vocabulary: Number of tokens that the model chooses among.

    Returns:
        Metric to value; ``collapse`` is 0 or 1, and 1 if any of several answers is broken.
    """
    values: dict[str, float] = {}
    if OUTPUT_TOKENS in metrics:
        counts = [length(text) for instance in instances for text in instance.resps]
        values[OUTPUT_TOKENS] = sum(counts) / len(counts)
    if COLLAPSE in metrics:
        if instances[0].request_type == "generate_until":
            broken = any(is_broken(text) for instance in instances for text in instance.resps)
        else:
            best = max(_per_token(instance, length) for instance in instances)
            broken = not best >= -math.log(n_vocabulary)
        values[COLLAPSE] = float(broken)
    return values


def is_broken(text: str) -> bool:
    """Whether a generated answer is empty, gibberish or a loop; see the head of this file."""
    if not text.strip():
        return True
    unreadable = sum(
        character == "\N{REPLACEMENT CHARACTER}"
        or (unicodedata.category(character) in _UNREADABLE and not character.isspace())
        for character in text
    )
    if unreadable > GIBBERISH_SHARE * len(text):
        return True
    data = text.encode("utf-8", "replace")
    tails = ((data[-n:], ratio) for n, ratio in LOOPS.items())
    return any(len(tail) > ratio * len(zlib.compress(tail)) for tail, ratio in tails)


def _per_token(instance: Any, length: Callable[[str], int]) -> float:
    """Log-likelihood per token of what an instance asks for; minus infinity for NaN."""
    answer = instance.resps[0]
    total = float(answer[0] if isinstance(answer, tuple) else answer)
    per_token = total / max(1, length(instance.args[-1]))
    return -math.inf if math.isnan(per_token) else per_token
