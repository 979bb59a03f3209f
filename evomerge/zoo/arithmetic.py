"""Arithmetic documents: short problems, one a line, drawn from a few small kinds.

The kinds are small enough for a model of a million parameters to learn within minutes. Of the
kinds with a thousand operand pairs, one pair in ten is held out of training by a hash of the
problem, and those are what `zoo_math_exact` asks about.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np

HELD_OUT_PERCENT = 10
PROBLEMS = 15


def solve(problem: str) -> str:
    """Answer a problem such as ``"47+8"``.

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
    raise ValueError(f"expected a problem like '47+8', got {problem!r}")


def all_problems() -> dict[str, list[str]]:
    """List every problem, by sign.

    Returns:
        Sign to problems: two digits plus one digit, two digits minus one digit, and the
        multiplication table.
    """
    return {
        "+": [f"{a}+{b}" for a in range(100) for b in range(10)],
        "-": [f"{a}-{b}" for a in range(100) for b in range(10) if a >= b],
        "*": [f"{a}*{b}" for a in range(10) for b in range(10)],
    }


def is_held_out(problem: str) -> bool:
    """Say whether a problem never occurs in training (never true of the times table)."""
    digest = int(hashlib.sha256(problem.encode()).hexdigest(), 16)
    return "*" not in problem and digest % 100 < HELD_OUT_PERCENT


def documents(n: int, rng: np.random.Generator, held_out: bool) -> list[str]:
    """Draw distinct documents of `PROBLEMS` solved problems, one a line.

    Args:
        n: Number of documents.
        rng: Source of the draws.
        held_out: Whether problems that training never sees may occur.

    Returns:
        The documents, each ending with a newline.
    """
    pools = _pools(held_out)
    drawn: dict[str, None] = {}
    while len(drawn) < n:
        kinds = rng.integers(len(pools), size=PROBLEMS)
        picks = (pools[k][int(rng.integers(len(pools[k])))] for k in kinds)
        drawn["".join(f"{problem}={solve(problem)}\n" for problem in picks)] = None
    return list(drawn)


@functools.cache
def _pools(held_out: bool) -> list[list[str]]:
    return [
        [p for p in problems if held_out or not is_held_out(p)]
        for problems in all_problems().values()
    ]


def questions(n: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Draw distinct prompts that end in a problem that training never saw.

    Args:
        n: Number of prompts.
        rng: Source of the draws.

    Returns:
        (prompt, answer) pairs; a prompt is four solved problems and an open one.
    """
    pool = [p for problems in all_problems().values() for p in problems if is_held_out(p)]
    drawn: dict[str, str] = {}
    while len(drawn) < n:
        lines = documents(1, rng, held_out=False)[0].splitlines(keepends=True)[:4]
        problem = pool[int(rng.integers(len(pool)))]
        drawn["".join(lines) + f"{problem}="] = solve(problem)
    return list(drawn.items())
