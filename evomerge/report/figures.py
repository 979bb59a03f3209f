"""The figures of a report: plotly for the page, matplotlib for one static picture.

Names reach plotly escaped, since plotly reads its labels as HTML, and only through fields that are
not templates. Colours are the light ones; :data:`DARK` maps each to its dark counterpart.
"""

from __future__ import annotations

import dataclasses
import html
import itertools
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.choose import front, is_reference, is_single, ranked, verdict
from evomerge.compare import constraints_of, is_scored, scale_of
from evomerge.recipe import Recipe
from evomerge.report.data import called, printable, raw, replace, summary
from evomerge.report.tables import number
from evomerge.run import Run
from evomerge.trial import Objective, Trial

INK, MUTED, RULE, DOT = "#1c2427", "#6b7579", "#e7e6e0", "#b4bdc0"
MERGED, SINGLE, PAPER = "#0f766e", "#b4540a", "#f5f4ef"
DARK = {
    INK: "#e7eae8",
    MUTED: "#97a3a7",
    RULE: "#2b3438",
    DOT: "#566267",
    MERGED: "#4fc4b5",
    SINGLE: "#f0a95c",
    PAPER: "#1d2529",
}
CLEAR = "rgba(0,0,0,0)"
FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"


@dataclasses.dataclass(frozen=True)
class Named:
    """A plotly figure with its section of the page, its heading, what to read in it and its width.

    A width of 0 is all the width there is; otherwise it is at most that many pixels.
    """

    key: str
    title: str
    note: str
    figure: Any
    width: int = 0


@dataclasses.dataclass(frozen=True)
class Curve:
    """The scalarised score over the search.

    Attributes:
        trials: The n scored search trials in told order.
        x: (n,) how many search trials had been told, from 1.
        y: (n,) scalarised normalised score.
        best: (n,) the best so far that keeps every bound; NaN before there is one.
    """

    trials: list[Trial]
    x: list[int]
    y: list[float]
    best: list[float]


def figures(run: Run) -> list[Named]:
    """Every figure that the run has something for, in reading order."""
    made = [*pareto_figures(run), *progress_figures(run)]
    trial = shown_recipe(run)
    if trial is not None:
        made += recipe_figures(trial.recipe, called(trial))
    return made


def shown_recipe(run: Run) -> Trial | None:
    """The trial whose coefficients are drawn: the best merge, or None."""
    return verdict(run).trial


def curve(run: Run) -> Curve:
    """The best-so-far curve; empty before the first search trial was scored."""
    scale = scale_of(run, "search")
    told = [t for t in run.trials if t.kind == "search" and t.split == "search"]
    rows = [(i, t) for i, t in enumerate(told, 1) if is_scored(t, scale.names)]
    y = [scale.scalar(t.scores.values) for _, t in rows if t.scores]
    bounds = constraints_of(run, "search")
    kept = [bounds.kept(t.scores.values) for _, t in rows if t.scores]
    best = list(np.fmax.accumulate([v if k else np.nan for v, k in zip(y, kept, strict=True)]))
    return Curve([t for _, t in rows], [i for i, _ in rows], y, best)


def pareto_figures(run: Run) -> list[Named]:
    """Trade-off plots, better always up and to the right: one per pair of up to four objectives.

    With more than four objectives, one plot of parallel lines instead.
    """
    names = [o.name for o in run.searched]
    trials = [t for t in run.complete("search") if is_scored(t, names) and t.copied_from is None]
    if len(names) < 2 or not trials:
        return []
    members = {t.number for t in front(run)}
    note = "Better is up and to the right. The line joins the Pareto front; point at a dot."
    if len(names) == 2:
        figure = _scatter(run, trials, members, run.searched[0], run.searched[1])
        return [Named("front", "Trade-off", note, figure)]
    note = "Better is up and to the right. Filled: the Pareto front over all objectives."
    if len(names) <= 4:
        return [
            Named("front", "Trade-off", note, _scatter(run, trials, members, a, b))
            for a, b in itertools.combinations(run.searched, 2)
        ]
    return [Named("front", "Trade-off", "Each line is one recipe.", _lines(run, trials, members))]


def progress_figures(run: Run) -> list[Named]:
    """The best-so-far curve beside the reference points."""
    import plotly.graph_objects as go

    c = curve(run)
    if not c.trials:
        return []
    dots = go.Scatter(
        x=c.x,
        y=c.y,
        mode="markers",
        name="trials",
        marker={"color": DOT, "size": 5, "line": {"width": 0}},
        hoverinfo="text",
        hovertext=_hovers(run, c.trials),
    )
    line = go.Scatter(
        x=[*c.x, max(_told(run), c.x[-1])],
        y=[*c.best, c.best[-1]],
        mode="lines",
        name="best so far",
        line={"color": MERGED, "width": 2.5, "shape": "hv"},
        hoverinfo="skip",
    )
    layout = _layout("search trials told", f"{scale_of(run, 'search').title} normalised score")
    levels = _levels(run)
    low, high = _range([*c.y, *(y for _, y in levels)])
    layout["shapes"] = [
        {
            "type": "line",
            "xref": "paper",
            "x0": 0,
            "x1": 1,
            "y0": y,
            "y1": y,
            "layer": "below",
            "line": {"color": SINGLE, "width": 1.2, "dash": "dot"},
        }
        for _, y in levels
    ]
    layout["annotations"] = [
        {
            "xref": "paper",
            "x": 0,
            "xanchor": "left",
            "y": y,
            "yanchor": "top" if i and levels[i - 1][1] - y < 0.06 * (high - low) else "bottom",
            "text": _escape(name),
            "showarrow": False,
            "font": {"size": 11, "color": SINGLE},
        }
        for i, (name, y) in enumerate(levels)
    ]
    layout["yaxis"]["range"] = [low, high]
    note = "Each dot is a trial; the line is the best so far. Dotted: reference points."
    return [Named("search", "The search", note, go.Figure([dots, line], layout))]


def recipe_figures(recipe: Recipe, name: str) -> list[Named]:
    """Heat maps of a recipe's coefficients, one per parameter: layer group x expert."""
    import plotly.graph_objects as go

    made = []
    small = {"color": MUTED, "size": 11}
    for parameter, matrix in recipe.coefficients.items():
        top = max(float(np.abs(matrix).max()), 1e-9)
        signed = bool((matrix < 0).any())
        columns = [_short(m.name, 20) for m in recipe.models]
        if matrix.shape[1] == 1 and len(recipe.models) > 1:
            columns = ["all experts"]
        rows = [_short(g.name, 30) for g in recipe.groups]
        scale = [[0, PAPER], [1, MERGED]]
        if signed:
            scale = [[0, SINGLE], [0.5, PAPER], [1, MERGED]]
        heat = go.Heatmap(
            z=matrix,
            colorscale=scale,
            zmin=-top if signed else 0,
            zmax=top,
            xgap=2,
            ygap=2,
            texttemplate="%{z:.2f}" if len(rows) <= 48 and len(columns) <= 12 else None,
            textfont={"size": 11},
            colorbar={
                "thickness": 8,
                "outlinewidth": 0,
                "len": 1,
                "ticklen": 0,
                "tickfont": small,
            },
            hoverinfo="text",
            hovertext=[
                [
                    f"{row}<br>{column}<br><b>{v:.4f}</b>"
                    for column, v in zip(columns, values, strict=True)
                ]
                for row, values in zip(rows, matrix.tolist(), strict=True)
            ],
        )
        layout = _layout("", "")
        layout["xaxis"] |= {"tickvals": list(range(len(columns))), "ticktext": columns}
        layout["yaxis"] |= {"tickvals": list(range(len(rows))), "ticktext": rows}
        layout["xaxis"] |= {"showgrid": False, "side": "top", "ticklen": 0, "zeroline": False}
        layout["yaxis"] |= {"showgrid": False, "autorange": "reversed", "ticklen": 0}
        layout["yaxis"]["zeroline"] = False
        layout["height"] = 90 + max(24 if len(rows) <= 24 else 15, 200 // len(rows)) * len(rows)
        note = f"{printable(parameter)} of {name}: one row per layer group, one column per expert."
        made.append(
            Named(
                "recipe", "The recipe", note, go.Figure([heat], layout), 300 + 120 * len(columns)
            )
        )
    return made


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


def _scatter(
    run: Run, trials: Sequence[Trial], members: set[int], a: Objective, b: Objective
) -> Any:
    """Two objectives against each other."""
    import plotly.graph_objects as go

    best = verdict(run).trial
    on = sorted((t for t in trials if t.number in members), key=lambda t: a.sign * raw(a, t))
    off = [t for t in trials if t.number not in members and not is_reference(t)]
    references = [t for t in trials if is_reference(t)]
    two = len(run.searched) == 2
    traces = [
        _points(run, a, b, off, name="trials", marker={"color": DOT, "size": 6}),
        _points(
            run,
            a,
            b,
            [t for t in on if two or not is_reference(t)],
            name="Pareto front",
            marker={"color": MERGED, "size": 9},
            mode="lines+markers" if two else "markers",
            line={"color": MERGED, "width": 1.5, "shape": "vh"},
        ),
        _points(
            run,
            a,
            b,
            references,
            name="reference points",
            marker={"color": SINGLE, "size": 10, "symbol": "diamond"},
            mode="markers+text",
            text=[_short(called(t), 24) for t in references],
            textposition=[
                "top center" if t.number in members else "bottom center" for t in references
            ],
            cliponaxis=False,
            textfont={"size": 11, "color": SINGLE},
        ),
    ]
    chosen = [t for t in trials if best is not None and t.number == best.number]
    if chosen and not is_reference(chosen[0]):
        ring = {"color": CLEAR, "size": 18, "line": {"color": INK, "width": 1.5}}
        traces.append(_points(run, a, b, chosen, name=called(chosen[0]), marker=ring))
    layout = _layout(_axis(a), _axis(b))
    for key, o in (("xaxis", a), ("yaxis", b)):
        low, high = _range([raw(o, t) for t in trials], 0.13)
        layout[key]["range"] = [low, high] if o.direction == "maximize" else [high, low]
    layout["height"] = 460
    return go.Figure(traces, layout)


def _points(
    run: Run,
    a: Objective,
    b: Objective,
    trials: Sequence[Trial],
    *,
    name: str,
    marker: dict[str, Any],
    **more: Any,
) -> Any:
    import plotly.graph_objects as go

    return go.Scatter(
        x=[raw(a, t) for t in trials],
        y=[raw(b, t) for t in trials],
        name=_escape(name),
        marker={"line": {"width": 0}, **marker},
        hoverinfo="text",
        hovertext=_hovers(run, trials),
        **{"mode": "markers", **more},
    )


def _lines(run: Run, trials: Sequence[Trial], members: set[int]) -> Any:
    """One line per recipe over many objectives, in normalised scores."""
    import plotly.graph_objects as go

    scale = scale_of(run, "search")
    traces = []
    for t in sorted(trials, key=lambda t: (t.number in members, is_reference(t))):
        on, reference = t.number in members, is_reference(t)
        if not (on or reference):
            continue
        y = list(scale.normalise(t.scores.values if t.scores else {}).values())
        color = SINGLE if reference else MERGED
        traces.append(
            go.Scatter(
                x=list(range(len(y))),
                y=y,
                mode="lines+markers",
                line={"color": color, "width": 1.2, "dash": "dot" if reference else "solid"},
                marker={"color": color, "size": 6},
                opacity=0.75,
                showlegend=False,
                hoverinfo="text",
                hovertext=_hovers(run, [t]) * len(y),
            )
        )
    layout = _layout("", "normalised score")
    names = [_short(o.name, 18) for o in run.searched]
    layout["xaxis"] |= {"tickvals": list(range(len(names))), "ticktext": names}
    return go.Figure(traces, layout)


def _layout(x: str, y: str) -> dict[str, Any]:
    """The look of every figure; ``x`` and ``y`` are axis titles, escaped already."""
    axis = {
        "gridcolor": RULE,
        "zeroline": False,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": CLEAR,
        "automargin": True,
        "title_standoff": 12,
        "tickfont": {"color": MUTED, "size": 11},
        "title_font": {"color": MUTED, "size": 12},
    }
    return {
        "font": {"family": FONT, "color": INK, "size": 13},
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "margin": {"l": 8, "r": 12, "t": 34, "b": 8},
        "height": 380,
        "xaxis": {**axis, "title_text": x},
        "yaxis": {**axis, "title_text": y},
        "hovermode": "closest",
        "hoverlabel": {
            "bgcolor": PAPER,
            "bordercolor": RULE,
            "align": "left",
            "font": {"color": INK, "size": 12, "family": FONT},
        },
        "legend": {
            "orientation": "h",
            "x": 0,
            "y": 1.02,
            "yanchor": "bottom",
            "font": {"size": 12, "color": MUTED},
            "itemclick": False,
            "itemdoubleclick": False,
        },
    }


def _hovers(run: Run, trials: Sequence[Trial]) -> list[str]:
    """What each dot says: name, raw scores, mean, recipe."""
    scale = scale_of(run, "search")
    texts = []
    for trial in trials:
        lines = [f"<b>{_escape(called(trial))}</b>"]
        for o in run.guiding:
            value = number(raw(o, trial))
            lines.append(f"{_short(o.name, 30)}  {value}  {_short(o.metric, 20)} {_arrow(o)}")
        if trial.scores:
            lines.append(f"{scale.title} normalised  {number(scale.scalar(trial.scores.values))}")
        lines += [_escape(part) for part in textwrap.wrap(summary(trial.recipe), 46)]
        texts.append("<br>".join(lines))
    return texts


def _levels(run: Run) -> list[tuple[str, float]]:
    """The base, the best expert and the best other reference: (name, mean normalised)."""
    scale = scale_of(run, "search")
    references = [t for t in run.complete("search") if is_reference(t)]
    found = ranked(references, scale, constraints_of(run, "search"))
    firsts: dict[str, tuple[str, float]] = {}
    for t in found:
        kind = "single" if is_single(t) and t.label != "base" else t.label if is_single(t) else ""
        value = scale.scalar(t.scores.values if t.scores else {})
        firsts.setdefault(kind, (called(t), value))
    return list(firsts.values())


def _told(run: Run) -> int:
    return sum(t.kind == "search" and t.split == "search" for t in run.trials)


def _arrow(o: Objective) -> str:
    return "\u2191" if o.direction == "maximize" else "\u2193"


def _axis(o: Objective) -> str:
    return f"{_short(o.name, 30)} \u00b7 {_short(o.metric, 24)} {_arrow(o)}"


def _range(values: Sequence[float], pad: float = 0.08) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = pad * (high - low) or 0.05 * max(abs(high), 0.1)
    return low - margin, high + margin


def _escape(text: str) -> str:
    """Text that plotly, which reads labels as HTML, shows as it is."""
    return html.escape(text, quote=False)


def _short(name: str, limit: int) -> str:
    return _escape(_clip(name, limit))


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
    c = curve(run)
    ax.set_title(
        f"The search: {scale_of(run, 'search').title} normalised score",
        fontsize=10,
        color=MUTED,
        loc="left",
    )
    ax.set_xlabel("search trials told", color=MUTED, fontsize=10)
    ax.scatter(c.x, c.y, s=10, color=DOT, linewidths=0)
    if c.x:
        ax.step(c.x, c.best, where="post", color=MERGED, linewidth=2)
    for name, y in _levels(run):
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

    trial = shown_recipe(run)
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
