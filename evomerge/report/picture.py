"""One static picture of a run, by matplotlib: the trade-off, the search, the best recipe."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.choose import front, is_reference
from evomerge.compare import is_scored, scale_of
from evomerge.report.data import called, printable, raw, replace
from evomerge.report.page_data import levels
from evomerge.report.progress import progress
from evomerge.run import Run
from evomerge.trial import Objective
from evomerge.verdict import verdict

INK, MUTED, RULE, DOT = "#1c2427", "#6b7579", "#e7e6e0", "#b4bdc0"
MERGED, SINGLE, PAPER = "#0f766e", "#b4540a", "#f5f4ef"
FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


def write_png(run: Run, path: Path) -> None:
    """Draws the trade-off or the curve, and the recipe, as one picture of 1600 pixels.

    Raises:
        ExportError: The file cannot be written.
    """
    import io
    import warnings

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    answer = verdict(run)
    trial = answer.trial
    panels = [_draw_curve]
    if len(run.searched) > 1:
        panels.insert(0, _draw_front)
    if trial is not None:
        panels.append(_draw_recipe)
    space = ConstrainedLayoutEngine(w_pad=0.25, h_pad=0.15, wspace=0.04)
    figure = Figure(figsize=(5.6 * len(panels), 4.9), layout=space)
    FigureCanvasAgg(figure)
    for ax, draw in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        ax.tick_params(color=RULE, labelcolor=MUTED, labelsize=9)
        for side, spine in ax.spines.items():
            spine.set_visible(side in {"left", "bottom"})
            spine.set_color(RULE)
        draw(ax, run)
    figure.suptitle(
        _dollars(printable(answer.headline)), fontsize=14, color=INK, x=0.01, ha="left"
    )
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(out, format="png", dpi=1600 / (5.6 * len(panels)), facecolor="white")
    replace(path, out.getvalue())


def _arrow(o: Objective) -> str:
    return "\u2191" if o.direction == "maximize" else "\u2193"


def _clip(name: str, limit: int) -> str:
    name = printable(name)
    return name if len(name) <= limit else name[: limit - 1] + "\u2026"


def _dollars(text: str) -> str:
    """Text that matplotlib does not read as mathematics."""
    return text.replace("$", "\\$")


def _draw_front(ax: Any, run: Run) -> None:
    """The first two objectives, for matplotlib."""
    a, b = run.searched[:2]
    trials = [t for t in run.complete("search") if is_scored(t, [o.name for o in run.searched])]
    members = {t.number for t in front(run)}
    for o, setter, invert in ((a, ax.set_xlabel, ax.xaxis), (b, ax.set_ylabel, ax.yaxis)):
        label = f"{_clip(o.name, 30)} \u00b7 {_clip(o.metric, 24)} {_arrow(o)}"
        setter(_dollars(label), color=MUTED, fontsize=10)
        invert.set_inverted(o.direction == "minimize")
    ax.margins(0.1)
    groups = (
        ([t for t in trials if not is_reference(t) and t.number not in members], DOT, "o", 14),
        ([t for t in trials if not is_reference(t) and t.number in members], MERGED, "o", 34),
        ([t for t in trials if is_reference(t)], SINGLE, "D", 30),
    )
    for chosen, color, marker, size in groups:
        xs, ys = [raw(a, t) for t in chosen], [raw(b, t) for t in chosen]
        ax.scatter(xs, ys, s=size, color=color, marker=marker, linewidths=0)
    for t in groups[2][0]:
        ax.annotate(
            _dollars(_clip(called(t), 24)),
            (raw(a, t), raw(b, t)),
            (6, 4),
            textcoords="offset points",
            fontsize=9,
            color=SINGLE,
        )
    ax.set_title("Trade-off: better is up and right", fontsize=10, color=MUTED, loc="left")


def _draw_curve(ax: Any, run: Run) -> None:
    """The best-so-far curve, for matplotlib."""
    course = progress(run)
    x = range(1, len(course.trials) + 1)
    ax.set_title(
        f"The search: {scale_of(run, 'search').title} normalised score",
        fontsize=10,
        color=MUTED,
        loc="left",
    )
    ax.set_xlabel("trials finished", color=MUTED, fontsize=10)
    ax.scatter(x, course.scalar, s=10, color=DOT, linewidths=0)
    if course.trials:
        ax.step(x, course.best, where="post", color=MERGED, linewidth=2)
    for name, y in levels(run):
        if math.isfinite(y):
            ax.axhline(y, color=SINGLE, linewidth=1, linestyle=":")
            ax.annotate(
                _dollars(_clip(name, 24)),
                (0, y),
                (2, 2),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                fontsize=9,
                color=SINGLE,
            )


def _draw_recipe(ax: Any, run: Run) -> None:
    """The first parameter of the best merge as a heat map, for matplotlib."""
    from matplotlib.colors import LinearSegmentedColormap

    trial = verdict(run).trial
    if trial is None or not trial.recipe.coefficients:
        ax.set_axis_off()
        return
    parameter, matrix = next(iter(trial.recipe.coefficients.items()))
    top = max(float(np.abs(matrix).max()), 1e-9)
    signed = bool((matrix < 0).any())
    colors = [SINGLE, PAPER, MERGED] if signed else [PAPER, MERGED]
    shades = LinearSegmentedColormap.from_list("recipe", colors)
    ax.imshow(matrix, aspect="auto", cmap=shades, vmin=-top if signed else 0, vmax=top)
    names = [_clip(m.name, 14) for m in trial.recipe.models]
    names = names if matrix.shape[1] == len(names) else ["all experts"]
    ax.set_xticks(range(len(names)), [_dollars(n) for n in names])
    rows = [_dollars(_clip(g.name, 22)) for g in trial.recipe.groups]
    step = max(1, math.ceil(len(rows) / 24))
    ax.set_yticks(range(0, len(rows), step), rows[::step])
    if len(rows) <= 24 and len(names) <= 8:
        for (i, j), v in np.ndenumerate(matrix):
            color = "white" if abs(v) > 0.6 * top else INK
            ax.text(j, i, f"{v:.2f}", ha="center", va="center", fontsize=8, color=color)
    title = f"{_clip(parameter, 20)} of {_clip(called(trial), 24)}"
    ax.set_title(_dollars(title), fontsize=10, color=MUTED, loc="left")
