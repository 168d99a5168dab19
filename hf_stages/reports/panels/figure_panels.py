"""Draws the three panels by matplotlib: PNG for a README, PDF for a paper. Needs the extra ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_stages.reports.pages.svg import FAINT, INK
from hf_stages.reports.panels.layout import Line, Panel, Panels, end_labels, gather, glyph_of, spread, words_of
from hf_stages.reports.text import shorten, shorten_middle

_MARKERS = {"up": "^", "down": "v", "left": "<", "bar": "|", "dot": "o", "square": "s"}
_SIZES = {"bar": 9.0, "dot": 4.0}
"""In points; a bar is longer than the triangles of the same step that stand upon it."""
_WIDTH, _HEIGHT, _ROW, _LINE = 13.0, 3.4, 0.12, 0.24
"""In inches: the picture's width, a panel's height, that of a run's row of marks, and that of a line of legend."""
_PER_LINE = 7
_LABELS = 23
"""How many labels there is room for at the end of a panel's lines."""


def save_figure(panels: Panels, path: str | Path) -> None:
    """Write the picture to ``path``; its suffix says the format (png, pdf)."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'a PNG or PDF needs matplotlib: pip install "hf_stages[report]". HTML and SVG need nothing'
        ) from error
    groups = _handles(panels)
    lines = [-(-len(items) // _PER_LINE) for items in groups]
    above, below = 0.5 + _ROW * len(panels.marks), 0.75 + _LINE * sum(lines)
    height = above + _HEIGHT + below
    figure = Figure(figsize=(_WIDTH, height), dpi=150, facecolor="white")
    column = _WIDTH / 3
    for number, panel in enumerate(panels.panels):
        box = (number * column + 0.55, below, column - 0.95, _HEIGHT)
        _draw(figure.add_axes((box[0] / _WIDTH, box[1] / height, box[2] / _WIDTH, box[3] / height)), panels, panel)
    top = below - 0.62
    for items, count in zip(groups, lines, strict=True):
        figure.legend(
            handles=items,
            loc="upper left",
            bbox_to_anchor=(0.45 / _WIDTH, top / height),
            ncols=min(len(items), _PER_LINE),
            fontsize=9,
            frameon=False,
            handlelength=3.2,
            borderpad=0,
            borderaxespad=0,
        )
        top -= _LINE * count
    figure.savefig(path)


def _draw(axes: Any, panels: Panels, panel: Panel) -> None:
    """Draw a panel in shares of its axes, as the page does: both show the same places and ticks."""
    axes.set(xlim=(0, 1), ylim=(0, 1))
    over = 1 + (_ROW * len(panels.marks) + 0.1) / _HEIGHT
    axes.text(0, over, shorten(panel.title, 40), fontsize=11, fontweight="bold", va="bottom", color=INK)
    steps, values = panel.steps.ticks() if panel.lines else [], panel.axis.ticks() if panel.lines else []
    axes.set_xticks([panel.steps.at(value) for value, _ in steps], [label for _, label in steps])
    axes.set_yticks([panel.axis.at(value) for value, _ in values], [label for _, label in values])
    axes.grid(color="#e2e2e2", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=3, labelsize=8.5, colors=INK)
    note = f"optimizer step\n{shorten(panel.note, 60)}" if panel.lines else "optimizer step"
    axes.set_xlabel(note, fontsize=9, color=INK)
    if not panel.lines:
        axes.text(0.5, 0.5, panel.note, ha="center", va="center", fontsize=9, color=FAINT)
    for line in panel.lines:
        _draw_line(axes, panels, panel, line)
    ends = end_labels(panels, panel, _LABELS)
    placed = spread([panel.axis.at(value) for value, _, _ in ends], 0.99 / (_LABELS - 1), 0.0, 0.99)
    for y, (_, words, colour) in zip(placed, ends, strict=True):
        axes.text(1.012, y, words, color=colour, fontsize=8.5, fontweight="bold", va="center", clip_on=False)
    _draw_marks(axes, panels, panel)


def _draw_line(axes: Any, panels: Panels, panel: Panel, line: Line) -> None:
    style: dict[str, Any] = {"color": line.style.colour, "linewidth": 1.5, **_dashes(panels, line.depth)}
    for segment in line.segments:
        xs = [panel.steps.at(x) for x, _ in segment]
        ys = [panel.axis.at(y) for _, y in segment]
        axes.plot(xs, ys, **style, marker="o" if len(segment) == 1 else None, markersize=2.8, clip_on=False)
    points: dict[str, Any] = {"linestyle": "", "color": line.style.colour, "clip_on": False, "zorder": 4}
    floored = [panel.steps.at(x) for x in line.floored]
    axes.plot(floored, [0.012] * len(floored), marker="v", markersize=5, markerfacecolor="white", **points)
    lost = [panel.steps.at(x) for x in line.lost]
    axes.plot(lost, [0.98] * len(lost), marker="x", markersize=5.5, markeredgewidth=1.6, **points)


def _dashes(panels: Panels, depth: int | None) -> dict[str, Any]:
    dashes = panels.dashes(depth)
    return {"linestyle": (0, tuple(length / 1.5 for length in dashes))} if dashes else {"linestyle": "-"}


def _draw_marks(axes: Any, panels: Panels, panel: Panel) -> None:
    for style, stages in panels.stages:
        for mark in gather(stages, panel.steps):
            axes.axvline(panel.steps.at(mark.step), color=style.colour, linewidth=1, linestyle=(0, (1, 2.5)))
    for row, (style, marks) in enumerate(panels.marks):
        y = 1 + _ROW * (len(panels.marks) - row - 0.4) / _HEIGHT
        for mark in gather(marks, panel.steps):
            x = panel.steps.at(mark.step)
            if mark.kind in ("alert", "rollback", "stop"):
                axes.axvline(x, color=style.colour, linewidth=0.9, alpha=0.35)
            axes.plot([x], [y], **_look_of(mark.kind), color=style.colour, clip_on=False, linestyle="")


def _look_of(kind: str) -> dict[str, Any]:
    glyph = glyph_of(kind)
    return {"marker": _MARKERS[glyph], "markersize": _SIZES.get(glyph, 5.0), "markeredgewidth": 1.4}


def _handles(panels: Panels) -> list[list[Any]]:
    """Return what the legends hold: runs, recurrences, marks."""
    from matplotlib.lines import Line2D

    def sign(words: str, **look: Any) -> Any:
        return Line2D([], [], **{"color": INK, "linestyle": "", "markersize": 5, "label": words, **look})

    runs = [
        sign(f"{style.letter}  {shorten_middle(style.name, 40)}", color=style.colour, linestyle="-", linewidth=3)
        for style in panels.runs
    ]
    depths = [sign(f"recurrence {depth}", linewidth=1.5, **_dashes(panels, depth)) for depth in panels.depths]
    kinds = dict.fromkeys(mark.kind for _, marks in panels.marks for mark in marks)
    signs = [sign(words_of(kind), **_look_of(kind)) for kind in kinds]
    if panels.floored:
        signs.append(sign("on the floor or below", marker="v", markerfacecolor="white"))
    if panels.lost:
        signs.append(sign("NaN or infinite", marker="x"))
    if panels.stages:
        signs.append(sign("a stage begins", linewidth=1, linestyle=(0, (1, 2.5))))
    return [items for items in (runs, depths, signs) if items]
