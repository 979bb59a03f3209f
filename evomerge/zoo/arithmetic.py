"""Arithmetic documents: one-digit problems, one a line.

One digit, because a model of a million parameters learns those facts within minutes; with two
digits it gets 15% right after the same training. A table of 255 facts cannot be held out fact by
fact: what is held out is the document. No run of `RUN` problems that a task shows occurs
in training.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np

PROBLEMS = 18
RUN = 5


def solve(problem: str) -> str:
    """Answer a problem such as ``"4+8"``.

    Args:
        problem: Two operands around ``+``, ``-`` or ``*``.

    Returns:
        The answer in decimal.
    """
    for sign in "+-*":
        left, found, right = problem.partition(sign)
        if found:
            a, b = int(left), int(right)
            return str(a + b if sign == "+" else a - b if sign == "-" else a * b)
    raise ValueError(f"expected a problem like '4+8', got {problem!r}")


@functools.cache
def all_problems() -> tuple[str, ...]:
    """List every problem: sums, differences that are not negative, and products of digits."""
    return tuple(
        f"{a}{sign}{b}"
        for sign in "+-*"
        for a in range(10)
        for b in range(10)
        if sign != "-" or a >= b
    )


def runs(documents: Iterable[str]) -> set[str]:
    """Collect every `RUN` consecutive lines of documents."""
    found: set[str] = set()
    for document in documents:
        lines = document.splitlines()
        found.update("\n".join(lines[i : i + RUN]) for i in range(len(lines) - RUN + 1))
    return found


def documents(
    n: int,
    rng: np.random.Generator,
    seen: set[str] | frozenset[str] = frozenset(),
    problems: int = PROBLEMS,
) -> list[str]:
    """Draw distinct documents of solved problems, one a line.

    Args:
        n: Number of documents.
        rng: Source of the draws.
        seen: Runs (see `runs`) that must not occur.
        problems: Problems in a document.

    Returns:
        The documents, each ending with a newline.
    """
    table = all_problems()
    drawn: dict[str, None] = {}
    while len(drawn) < n:
        picks = (table[i] for i in rng.integers(len(table), size=problems))
        document = "".join(f"{problem}={solve(problem)}\n" for problem in picks)
        if not runs([document]) & seen:
            drawn[document] = None
    return list(drawn)


def questions(n: int, rng: np.random.Generator, seen: set[str]) -> list[tuple[str, str]]:
    """Draw distinct prompts that end in an open problem.

    Args:
        n: Number of prompts.
        rng: Source of the draws.
        seen: Runs (see `runs`) that must not occur, the answer included.

    Returns:
        (prompt, answer) pairs; a prompt is `RUN` - 1 solved problems and an open one.
    """
    pairs = []
    for document in documents(n, rng, seen, RUN):
        prompt, _, answer = document.rstrip("\n").rpartition("=")
        pairs.append((prompt + "=", answer))
    return pairs
