"""Draws the plan: stages as boxes, and below them the learning rate and the data over the run's steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_stages.planning.plan import Plan, PlannedStage
from hf_stages.reports.text import count, part, rate, shorten

# Paul Tol's "muted" scheme (https://sronpersonalpages.nl/~pault), told apart by colour-blind readers; neighbours
# contrast.
_COLOURS = ["#88CCEE", "#CC6677", "#DDCC77", "#44AA99", "#AA4499", "#999933", "#6699CC", "#882255", "#117733"]
_SOURCES = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999"]
_INK, _FAINT = "#222222", "#777777"
BOX, TALL, GAP, LANE = 1.72, 0.78, 0.42, 1.02  # inches: a box, the arrow between two, a row's height
_PER_LINE = 5
_SAMPLES = 300


def draw_plan(plan: Plan, path: str | Path, *, data: Mapping[str, str] | None = None) -> None:
    """Write the picture to ``path``; its suffix says the format (png, svg, pdf). Needs matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('drawing a plan needs matplotlib: pip install "hf_stages[report]"') from error
    places = places_of(plan)
    columns = max(column for column, _ in places.values()) + 1
    width = max(columns * (BOX + GAP) + 0.6, 9.0)
    heights = [max(row for _, row in places.values()) * LANE + 1.3, 2.3, 0.5 + 0.5 * _has_mixture(plan)]
    figure = Figure(figsize=(width, sum(heights) + 1.4), dpi=150, facecolor="white", layout="constrained")
    boxes, curve, band = figure.subplots(3, 1, height_ratios=heights)
    colours = {s.name: _COLOURS[(s.index - 1) % len(_COLOURS)] for s in plan.stages}
    _draw_boxes(boxes, plan, places, colours, width)
    _draw_rates(curve, plan, colours)
    _draw_data(band, plan, colours, data or {}, width)
    figure.savefig(path)


def places_of(plan: Plan) -> dict[str, tuple[int, float]]:
    """Return column and row of each stage. A first child stays in its parent's lane; later ones get their own lane.

    Chains longer than a line of boxes go on below, like text.
    """
    depths: dict[str | None, int] = {None: -1}
    lanes: dict[str, int] = {}
    continued: set[str | None] = {None}
    for planned in plan.stages:
        parent = planned.parent
        depths[planned.name] = depths[parent] + 1
        lanes[planned.name] = len(set(lanes.values())) if parent is None or parent in continued else lanes[parent]
        continued.add(parent)
    lines = sorted({(depths[name] // _PER_LINE, lane) for name, lane in lanes.items()})
    rows = {line: row + 0.25 * line[0] for row, line in enumerate(lines)}
    return {name: (depths[name] % _PER_LINE, rows[depths[name] // _PER_LINE, lane]) for name, lane in lanes.items()}


def _draw_boxes(axes: Any, plan: Plan, places: Mapping[str, tuple[int, float]], colours: Any, width: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    bottom = max(row for _, row in places.values()) * LANE + TALL
    axes.set(xlim=(-0.4, width - 0.6), ylim=(-bottom - 0.15, 0.1))
    axes.set_axis_off()
    for planned in plan.stages:
        left, top = places[planned.name][0] * (BOX + GAP), -places[planned.name][1] * LANE
        look: dict[str, Any] = {
            "facecolor": _shade(colours[planned.name], 0.45),
            "edgecolor": _shade(colours[planned.name], 1.25),
        }
        style = "round,pad=0,rounding_size=0.09"
        axes.add_patch(FancyBboxPatch((left, top - TALL), BOX, TALL, boxstyle=style, linewidth=1.4, zorder=2, **look))
        title, *rest = _box_lines(planned)
        text = {"ha": "left", "va": "top", "color": _INK, "zorder": 3}
        axes.text(left + 0.1, top - 0.09, title, fontsize=9, fontweight="bold", **text)
        axes.text(left + 0.1, top - 0.29, "\n".join(rest), fontsize=7.5, linespacing=1.35, **text)
        if planned.parent is not None:
            _draw_arrow(axes, places[planned.parent], places[planned.name])


def _draw_arrow(axes: Any, start: tuple[int, float], end: tuple[int, float]) -> None:
    """Draw an arrow from a box to its child. Bends run between columns and lines, where no box is."""
    x0, y0 = start[0] * (BOX + GAP) + BOX, -start[1] * LANE - TALL / 2
    x1, y1 = end[0] * (BOX + GAP), -end[1] * LANE - TALL / 2
    bend, path = GAP * 0.4, [(x0, y0)]
    if x1 < x0:
        between = y1 + TALL / 2 + 0.22
        path += [(x0 + bend, y0), (x0 + bend, between), (x1 - bend * 1.5, between), (x1 - bend * 1.5, y1)]
    elif y0 != y1:
        path += [(x0 + bend, y0), (x0 + bend, y1)]
    axes.plot(*zip(*path, strict=True), color=_FAINT, linewidth=1.3, zorder=1, solid_joinstyle="round")
    arrow = {"arrowstyle": "-|>", "color": _FAINT, "linewidth": 1.3, "shrinkA": 0, "shrinkB": 1}
    axes.annotate("", xy=(x1, y1), xytext=path[-1], arrowprops=arrow, zorder=1)


def _box_lines(planned: PlannedStage) -> list[str]:
    stage = planned.stage
    steps = count(planned.steps, exact=planned.exact) + " steps"
    lines = [shorten(f"{planned.index}  {planned.name}", 20)]
    lines.append(
        steps if planned.tokens is None else f"{steps}, {count(planned.tokens, exact=not planned.exact)} tokens"
    )
    lines.append(" + ".join(type(t).__name__ for t in stage.transforms) or "")
    lines.append("" if stage.loss is None else part(stage.loss).replace("()", ""))
    return [lines[0], *[shorten(line, 27) for line in lines[1:] if line]]


def _draw_rates(axes: Any, plan: Plan, colours: Mapping[str, str]) -> None:
    for planned in plan.stages:
        ts = [k / _SAMPLES for k in range(_SAMPLES + 1)]
        xs = [planned.first_step + t * planned.steps for t in ts]
        ys = [plan.lr_at(planned.name, t) for t in ts]
        axes.fill_between(xs, ys, color=_shade(colours[planned.name], 0.6), linewidth=0)
        axes.plot(xs, ys, color=_INK, linewidth=1.3, solid_capstyle="round")
    axes.set_ylabel("learning rate", fontsize=9, color=_INK)
    axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.02)
    axes.yaxis.set_major_formatter(lambda value, _: rate(value))
    _draw_edges(axes, plan)
    axes.tick_params(labelbottom=False, length=3, labelsize=8, colors=_INK)
    _draw_numbers(axes, plan)


def _draw_numbers(axes: Any, plan: Plan) -> None:
    """Draw the stages' numbers above the curve. Where two would touch, the later one goes a line up, or is left out."""
    free = [float("-inf")] * 2
    for planned in plan.stages:
        middle = (planned.first_step + planned.steps / 2) / plan.total_steps
        level = next((i for i in (0, 1) if middle - free[i] > 0.022), None)
        if level is None:
            continue
        free[level] = middle
        style = {"transform": axes.transAxes, "ha": "center", "va": "bottom", "fontsize": 9, "fontweight": "bold"}
        axes.text(middle, 1.02 + 0.09 * level, str(planned.index), color=_INK, **style)


def _draw_edges(axes: Any, plan: Plan) -> None:
    for planned in plan.stages[1:]:
        axes.axvline(planned.first_step, color=_FAINT, linewidth=0.8, linestyle=(0, (3, 3)), zorder=1)
    axes.set_xlim(0, plan.total_steps)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _draw_data(axes: Any, plan: Plan, colours: Mapping[str, str], data: Mapping[str, str], width: float) -> None:
    mixtures = {s.name: w for s in plan.stages if (w := _weights(s)) is not None}
    sources = sorted({name for weights in mixtures.values() for name in weights[0]})
    for planned in plan.stages:
        start, end = planned.first_step, planned.first_step + planned.steps
        if planned.name in mixtures:
            _draw_shares(axes, planned, mixtures[planned.name], sources)
            continue
        axes.fill_between([start, end], 1, color=_shade(colours[planned.name], 0.6), linewidth=0)
        room = int((width - 1.1) * planned.steps / plan.total_steps / 0.075)
        label = data.get(planned.name, "")
        if room >= min(len(label), 7):
            label = shorten(label, room)
            axes.text((start + end) / 2, 0.5, label, ha="center", va="center", fontsize=8, color=_INK)
    _draw_edges(axes, plan)
    axes.set(ylim=(0, 1), yticks=[0, 1] if mixtures else [])
    axes.set_ylabel("share" if mixtures else "data", fontsize=9, color=_INK)
    axes.set_xlabel("steps (estimated)" if any(not s.exact for s in plan.stages) else "steps", fontsize=9, color=_INK)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.tick_params(length=3, labelsize=8, colors=_INK)
    if sources:
        handles = [_swatch(_SOURCES[i % len(_SOURCES)]) for i in range(len(sources))]
        axes.figure.legend(
            handles, sources, loc="outside lower center", ncols=min(len(sources), 6), fontsize=8, frameon=False
        )


def _draw_shares(axes: Any, planned: PlannedStage, weights: list[dict[str, float]], sources: list[str]) -> None:
    xs = [planned.first_step + k / (len(weights) - 1) * planned.steps for k in range(len(weights))]
    totals = [sum(w.values()) or 1.0 for w in weights]
    ys = [[w.get(name, 0.0) / total for w, total in zip(weights, totals, strict=True)] for name in sources]
    colours = [_shade(_SOURCES[i % len(_SOURCES)], 0.75) for i in range(len(sources))]
    axes.stackplot(xs, *ys, colors=colours, linewidth=0)


def _weights(planned: PlannedStage) -> list[dict[str, float]] | None:
    """Return a mixture's declared weights over the stage; None where the data is one source."""
    blend = planned.blend
    if blend is None or len(blend.names) < 2:
        return None
    edges = [min(blend.draws * k // _SAMPLES, blend.draws - 1) for k in range(_SAMPLES + 1)]
    width = max(blend.draws // _SAMPLES, 1)
    return [dict(zip(blend.names, blend.declared_shares(edge, edge + width), strict=True)) for edge in edges]


def _has_mixture(plan: Plan) -> bool:
    return any(_weights(planned) is not None for planned in plan.stages)


def _swatch(colour: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=_shade(colour, 0.75))


def _shade(colour: str, amount: float) -> tuple[float, ...]:
    """Make a colour lighter (amount below 1) or darker (above 1)."""
    from matplotlib.colors import to_rgb

    if amount <= 1:
        return tuple(1 - (1 - channel) * amount for channel in to_rgb(colour))
    return tuple(channel / amount for channel in to_rgb(colour))
