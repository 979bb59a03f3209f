"""The table of ``evomerge list methods``: what one needs to know to choose a merge method."""

from __future__ import annotations

from collections.abc import Iterator

from evomerge.methods import METHODS, MergeMethod

_HEAD = ("METHOD", "EXPERTS", "BASE", "PARAMETERS, low..high (start)", "SETTINGS")
_LEGEND = """
A parameter has a value per expert and layer group; one with a * is shared by the experts. Ranges
are defaults: a search space sets its own. Settings go under `fixed` in a search space.
`evomerge list spaces` says what the methods do; docs/methods.md has their equations."""


def method_lines() -> Iterator[str]:
    """A heading, one line per method, and a legend."""
    rows = [_HEAD, *(_row(m) for m in METHODS.values())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join([*cells, row[-1]]).rstrip()
    yield _LEGEND


def _row(method: MergeMethod) -> tuple[str, ...]:
    fewest, most = method.n_experts
    base = "needed" if method.needs_base else "-"
    if "task_vectors" in method.fixed:
        base = "optional"
    return (
        method.name,
        f"{fewest}+" if most is None else str(most) if most == fewest else f"{fewest}-{most}",
        base,
        ", ".join(
            f"{name}{'*' if p.shared else ''} {p.low:g}..{p.high:g} ({p.default:g})"
            for name, p in method.parameters.items()
        ),
        " ".join(f"{name}={_spelled(value)}" for name, value in method.fixed.items()),
    )


def _spelled(value: bool | float | str) -> str:
    """As YAML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
