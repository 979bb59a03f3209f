"""Whether models can be merged at all: the pool's own checks, all of them instead of the first.

:meth:`evomerge.experts.ExpertPool.open` raises at the first problem, since a search cannot start
with any. The doctor asks the same functions and goes on, so that every model gets its reasons.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from evomerge.adapter import open_expert
from evomerge.checkpoint import Checkpoint
from evomerge.diagnose.finding import Finding
from evomerge.errors import CheckpointError
from evomerge.experts import Misfit, misfits, quantised
from evomerge.vocabulary import n_rows

_SHOWN = 3
"""Names shown of a long list."""
_LEAVE_OUT = "Leave it out, or give a model that was fine-tuned from this base."
_REMEDIES = {
    "quantised": "Merge the original models and quantise the result.",
    "architecture": _LEAVE_OUT,
    "configuration": _LEAVE_OUT,
    "tensors": _LEAVE_OUT,
    "shape": _LEAVE_OUT,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Inspection:
    """What the headers, configurations, tokenizers and hashes say.

    Attributes:
        base: The base, audited where it is whole; None where it cannot be opened.
        fitting: The experts that can be merged with it, audited, in the order given.
        findings: Everything else.
    """

    base: Checkpoint | None
    fitting: tuple[Checkpoint, ...]
    findings: tuple[Finding, ...]


def inspect(
    base: str, experts: Mapping[str, str], progress: Callable[[str], None] | None = None
) -> Inspection:
    """Opens, compares and audits; reads every weight once (cached between runs).

    Args:
        base: Folder or hub id of the base.
        experts: Expert name to folder or hub id.
        progress: Told the name of each model before it is read.
    """
    findings: list[Finding] = []
    origin = _opened("base", base, None, findings, progress)
    fitting: list[Checkpoint] = []
    seen = {origin.content: "base"} if origin else {}
    for name, source in experts.items():
        found = _opened(name, source, origin, findings, progress)
        if found is None:
            continue
        reasons = list(_reasons(origin, found)) if origin else []
        findings += reasons
        if any(r.blocks for r in reasons):
            continue
        if found.content in seen:
            findings.append(_again(name, seen[found.content]))
            continue
        seen[found.content] = name
        fitting.append(found)
    return Inspection(origin, tuple(fitting), tuple(findings))


def same_as_base(name: str) -> Finding:
    """An expert without a task vector."""
    return Finding(
        name,
        "equal to the base",
        blocks=True,
        text=f"{name!r} is the base: every weight is the same, so it has nothing to add.",
        remedy="Leave it out; if it should differ, check that the training's result was saved.",
    )


def _again(name: str, first: str) -> Finding:
    if first == "base":
        return same_as_base(name)
    return Finding(
        name,
        "listed twice",
        blocks=True,
        text=f"{name!r} and {first!r} are the same model: every weight is the same.",
        remedy="List it once; a larger coefficient does what listing it twice would.",
    )


def _opened(
    name: str,
    source: str,
    base: Checkpoint | None,
    findings: list[Finding],
    progress: Callable[[str], None] | None,
) -> Checkpoint | None:
    """The audited checkpoint, or None with the reasons among the findings."""
    if progress:
        progress(name)
    try:
        found = open_expert(name, source, base) if base else Checkpoint.open(name, source)
    except CheckpointError as e:
        findings.append(Finding(name, "unreadable", blocks=True, text=str(e)))
        return None
    narrow = quantised(found)
    if narrow:
        findings.append(_finding(name, narrow, 1))
        return None
    try:
        return found.audited()
    except CheckpointError as e:
        findings.append(Finding(name, "NaN or Inf", blocks=True, text=str(e)))
        return None


def _reasons(base: Checkpoint, expert: Checkpoint) -> Iterator[Finding]:
    """Why one expert does not fit the base; and, not blocking, where its dtype differs."""
    found = list(misfits(base, expert))
    counts = Counter(m.kind for m in found)
    if counts["architecture"]:  # whatever else differs follows from it
        found = [m for m in found if m.kind == "architecture"]
    told = set()
    for misfit in found:
        if misfit.kind not in told:
            told.add(misfit.kind)
            tokens = misfit.kind == "vocabulary"
            yield (
                _tokens(base, expert)
                if tokens
                else _finding(expert.name, misfit, counts[misfit.kind])
            )
    mine, theirs = ({t.dtype for t in c.tensors.values() if t.is_float} for c in (base, expert))
    if not found and mine != theirs:
        yield Finding(
            expert.name,
            "dtype",
            blocks=False,
            text=f"{expert.name!r} is stored as {_dtypes(theirs)}, the base as {_dtypes(mine)}: "
            "sums are taken in float32 and the merge is written as the base is.",
        )


def _dtypes(found: set[str]) -> str:
    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
    return " and ".join(sorted(names[f] for f in found))


def _finding(name: str, misfit: Misfit, count: int) -> Finding:
    more = f" ({count - 1} more of this kind.)" if count > 1 else ""
    return Finding(
        name, misfit.kind, blocks=True, text=misfit.text + more, remedy=_REMEDIES[misfit.kind]
    )


def _tokens(base: Checkpoint, expert: Checkpoint) -> Finding:
    """Two vocabularies that differ: by added tokens, or in what ids mean."""
    ours, theirs = base.tokens() or {}, expert.tokens() or {}
    rows, their_rows = n_rows(base), n_rows(expert)
    moved = sorted((t for t in ours if theirs and theirs.get(t) != ours[t]), key=ours.__getitem__)
    if moved:
        text = (
            f"{expert.name!r} has another vocabulary: {len(moved)} of the base's {len(ours)} "
            f"tokens have other ids there or none, the first is {moved[0]!r} "
            f"({ours[moved[0]]} and {theirs.get(moved[0], 'none')}). A merge would mix rows of "
            "the embedding that mean different tokens."
        )
        remedy = f"{_LEAVE_OUT} If it is one whose tokens were moved: {_matched(base, expert)}"
        return Finding(expert.name, "other vocabulary", blocks=True, text=text, remedy=remedy)
    added = sorted((t for t in theirs if t not in ours), key=theirs.__getitem__) if ours else []
    text = f"{expert.name!r} has "
    if added:
        shown = ", ".join(map(repr, added[:_SHOWN])) + (", ..." if len(added) > _SHOWN else "")
        text += f"{len(added)} token(s) that the base has not ({shown})"
        text += ", every other token has the same id" + ("; and " if rows != their_rows else ".")
    if rows != their_rows:
        text += f"an embedding of {their_rows} rows where the base has {rows}."
    return Finding(
        expert.name, "added tokens", blocks=True, text=text, remedy=_matched(base, expert)
    )


def _matched(base: Checkpoint, expert: Checkpoint) -> str:
    """What to set, where both name their tokens; else what to give them."""
    for model in (base, expert):
        if not model.tokens():
            return f"Save {model.name!r} with its tokenizer (tokenizer.json), to match tokens."
    return (
        f"Search with models.tokenizer={expert.name} if the tasks need its tokens, with "
        "models.tokenizer=base if not: rows are then matched by token."
    )
