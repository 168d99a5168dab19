"""Draws the three panels as SVG, side by side. It needs no package."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from hf_stages.reports.pages.svg import FAINT, INK, text_at
from hf_stages.reports.panels.layout import Line, Panel, Panels, Style, end_labels, gather, glyph_of, spread, words_of
from hf_stages.reports.text import shorten, shorten_middle

WIDTH = 1140
_COLUMN, _LEFT, _RIGHT, _HEIGHT = WIDTH / 3, 50, 34, 270
_ROW = 11
"""The height of a run's row of marks."""
_LABELS = 25
"""How many labels there is room for at the end of a panel's lines."""
_SHAPES = {  # a bar is longer than a triangle of the same step that stands upon it
    "up": "M{x:.1f},{y:.1f} l-4,7.5 h8 z",
    "down": "M{x:.1f},{bottom:.1f} l-4,-7.5 h8 z",
    "left": "M{left:.1f},{middle:.1f} l7.5,-4 v8 z",
    "bar": "M{left:.1f},{over:.1f} h2.4 v10.5 h-2.4 z",
    "dot": "M{left:.1f},{middle:.1f} a3,3 0 1 0 6,0 a3,3 0 1 0 -6,0 z",
    "square": "M{left:.1f},{y:.1f} h7 v7 h-7 z",
}


def draw_panels(panels: Panels) -> tuple[str, float, float]:
    """Return the picture, its width and its height."""
    top = 40 + _ROW * len(panels.marks)
    parts = []
    for number, panel in enumerate(panels.panels):
        place = _Place(panels, panel, number * _COLUMN + _LEFT, top)
        parts.append(_frame(place))
        parts += [_line(place, line) for line in panel.lines]
        parts += [_end_labels(place), _marks(place)]
    legend, height = _legend(panels, top + _HEIGHT + 58)
    return "".join([*parts, legend]), WIDTH, height


@dataclass(frozen=True)
class _Place:
    """Where a panel lies in the picture."""

    panels: Panels
    panel: Panel
    left: float
    top: float
    width: float = _COLUMN - _LEFT - _RIGHT

    def x(self, step: float) -> float:
        return self.left + self.panel.steps.at(step) * self.width

    def y(self, value: float) -> float:
        return self.top + (1 - self.panel.axis.at(value)) * _HEIGHT


def _frame(place: _Place) -> str:
    left, top, width = place.left, place.top, place.width
    parts = [text_at(left, 14, shorten(place.panel.title, 40), size=14, weight="bold")]
    if place.panel.lines:
        parts.append(text_at(left, 29, shorten(place.panel.note, 52), size=11, colour=FAINT))
    else:
        parts.append(text_at(left + 12, top + _HEIGHT / 2, shorten(place.panel.note, 50), size=12, colour=FAINT))
    for value, label in place.panel.axis.ticks() if place.panel.lines else []:
        y = place.y(value)
        parts.append(f'<path d="M{left:.1f},{y:.1f} h{width:.1f}" stroke="#e2e2e2"/>')
        parts.append(text_at(left - 5, y + 4, label, anchor="end", size=11))
    for value, label in place.panel.steps.ticks() if place.panel.lines else []:
        x = place.x(value)
        parts.append(f'<path d="M{x:.1f},{top:.1f} v{_HEIGHT}" stroke="#e2e2e2"/>')
        parts.append(text_at(x, top + _HEIGHT + 16, label, anchor="middle", size=11))
    parts.append(
        f'<rect x="{left:.1f}" y="{top:g}" width="{width:.1f}" height="{_HEIGHT}" fill="none" stroke="{INK}"/>'
    )
    parts.append(text_at(left + width / 2, top + _HEIGHT + 32, "optimizer step", anchor="middle", size=11))
    return "".join(parts)


def _line(place: _Place, line: Line) -> str:
    colour, name = line.style.colour, _name_of(line)
    dashes = " ".join(f"{length:g}" for length in place.panels.dashes(line.depth))
    look = f'stroke="{colour}" stroke-width="1.7"' + (f' stroke-dasharray="{dashes}"' if dashes else "")
    parts = []
    for segment in line.segments:
        path = " ".join(f"{place.x(x):.1f},{place.y(y):.1f}" for x, y in segment)
        parts.append(f'<polyline points="{path}" fill="none" {look}><title>{escape(name)}</title></polyline>')
    for x, y in [point for segment in line.segments for point in segment]:
        words = f"<title>{escape(name)}: {y:.4g} at step {x:g}</title>"
        at = f'cx="{place.x(x):.1f}" cy="{place.y(y):.1f}"'
        parts.append(f'<circle {at} r="4" fill-opacity="0">{words}</circle>')  # seen by a mouse alone
    alone = [segment[0] for segment in line.segments if len(segment) == 1]
    parts += [f'<circle cx="{place.x(x):.1f}" cy="{place.y(y):.1f}" r="2" fill="{colour}"/>' for x, y in alone]
    parts += [_hollow(place.x(x), place.top + _HEIGHT, colour, f"{name}: floored at step {x:g}") for x in line.floored]
    parts += [_cross(place.x(x), place.top + 6, colour, f"{name}: not finite at step {x:g}") for x in line.lost]
    return "".join(parts)


def _name_of(line: Line) -> str:
    return line.style.name + ("" if line.depth is None else f", recurrence {line.depth}")


def _end_labels(place: _Place) -> str:
    """Write each run's letter where its line ends: beside the deepest and the shallowest of its recurrences."""
    ends = [(place.y(value), words, colour) for value, words, colour in end_labels(place.panels, place.panel, _LABELS)]
    placed = spread([y for y, _, _ in ends], 11, place.top + 4, place.top + _HEIGHT)
    x = place.left + place.width + 4
    return "".join(
        text_at(x, y + 4, words, size=11, weight="bold", colour=colour)
        for y, (_, words, colour) in zip(placed, ends, strict=True)
    )


def _marks(place: _Place) -> str:
    """Draw a row of marks above the panel for each run that has some, and lines down from alerts and rollbacks."""
    parts = []
    for style, stages in place.panels.stages:
        for mark in gather(stages, place.panel.steps):
            path = f'd="M{place.x(mark.step):.1f},{place.top:g} v{_HEIGHT}"'
            parts.append(
                f'<path {path} stroke="{style.colour}" stroke-dasharray="1 3" stroke-width="1.3">'
                f"<title>{escape(f'{style.name}: {mark.words}')}</title></path>"
            )
    for row, (style, marks) in enumerate(place.panels.marks):
        y = place.top - _ROW * (len(place.panels.marks) - row)
        for mark in gather(marks, place.panel.steps):
            x = place.x(mark.step)
            if mark.kind in ("alert", "rollback", "stop"):
                parts.append(
                    f'<path d="M{x:.1f},{place.top:g} v{_HEIGHT}" stroke="{style.colour}" stroke-opacity="0.35"/>'
                )
            parts.append(_glyph(mark.kind, x, y, style.colour, f"{style.name}, step {mark.step:g}: {mark.words}"))
    return "".join(parts)


def _glyph(kind: str, x: float, y: float, colour: str, words: str) -> str:
    shape = _SHAPES[glyph_of(kind)]
    half = {"left": 4.0, "bar": 1.2, "dot": 3.0, "square": 3.5}.get(glyph_of(kind), 0.0)
    path = shape.format(x=x, y=y, left=x - half, middle=y + 4, bottom=y + 7.5, over=y - 1.5)
    return f'<path d="{path}" fill="{colour}"><title>{escape(words)}</title></path>'


def _hollow(x: float, y: float, colour: str, words: str) -> str:
    path = f"M{x:.1f},{y:.1f} l-4,-7 h8 z"
    return f'<path d="{path}" fill="white" stroke="{colour}" stroke-width="1.2"><title>{escape(words)}</title></path>'


def _cross(x: float, y: float, colour: str, words: str) -> str:
    path = f"M{x - 3.5:.1f},{y - 3.5:.1f} l7,7 m0,-7 l-7,7"
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8"><title>{escape(words)}</title></path>'


def _legend(panels: Panels, top: float) -> tuple[str, float]:
    """Draw the legend: runs, recurrences, marks, each on lines of their own; also return where it ends."""
    runs = [(_run_sign(style), f"{style.letter}  {shorten_middle(style.name, 40)}") for style in panels.runs]
    depths = [(_dash_sign(panels.dashes(depth)), f"recurrence {depth}") for depth in panels.depths]
    kinds = dict.fromkeys(mark.kind for _, marks in panels.marks for mark in marks)
    signs = [(_glyph(kind, 12, -8, INK, kind), words_of(kind)) for kind in kinds]
    if panels.stages:
        signs.append(
            (f'<path d="M12,-11 v13" stroke="{INK}" stroke-dasharray="1 3" stroke-width="1.3"/>', "a stage begins")
        )
    if panels.floored:
        signs.append((_hollow(12, 0, INK, "floored"), "on the floor or below"))
    if panels.lost:
        signs.append((_cross(12, -4, INK, "not finite"), "NaN or infinite"))
    parts, y = [], top
    for items in (runs, depths, signs):
        if items:
            drawn, y = _flow(items, y)
            parts.append(drawn)
    return "".join(parts), y


def _flow(items: Iterable[tuple[str, str]], y: float) -> tuple[str, float]:
    """Place signs with their words one after another, in as many lines as they need."""
    parts, x = [], float(_LEFT)
    for sign, words in items:
        need = 44 + 6.8 * len(words)
        if x > _LEFT and x + need > WIDTH:
            x, y = float(_LEFT), y + 18
        parts.append(f'<g transform="translate({x:.1f},{y:g})">{sign}{text_at(29, 0, words, size=12)}</g>')
        x += need
    return "".join(parts), y + 20


def _run_sign(style: Style) -> str:
    return f'<path d="M0,-4 h24" stroke="{style.colour}" stroke-width="3"/>'


def _dash_sign(dashes: Sequence[float]) -> str:
    look = f' stroke-dasharray="{" ".join(f"{length:g}" for length in dashes)}"' if dashes else ""
    return f'<path d="M0,-4 h24" stroke="{INK}" stroke-width="1.7"{look}/>'
