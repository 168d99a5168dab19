"""Draws pictures of a run as plain SVG: the stage x domain heat map, and curves over steps. It needs no package."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from hf_stages.reports.matrix import START, Matrix
from hf_stages.reports.text import rate, shorten, shorten_middle

Points = Sequence[tuple[float, float]]
# Wong's palette (Nature Methods 8, 441), told apart by colour-blind readers.
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8a7a00", "#555555"]
INK, FAINT = "#222222", "#888888"
_FONT = 'font-family="system-ui, sans-serif"'
_CELL, _ROW, _HEAD = 118, 40, 30
_DOTTED = 200
"""Curves with more points than these have no dots."""
_WORST = 0.5
"""A rise by this share of the best value is full red."""


def document(parts: Sequence[tuple[str, float, float]], pad: float = 16) -> str:
    """Stack pictures, each (svg, width, height), into one SVG document."""
    width = max(w for _, w, _ in parts) + 2 * pad
    top, placed = pad, []
    for svg, _, height in parts:
        placed.append(f'<g transform="translate({pad},{top:g})">{svg}</g>')
        top += height + pad
    size = f'width="{width:g}" height="{top:g}" viewBox="0 0 {width:g} {top:g}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {_FONT}><rect width="100%" height="100%" '
        f'fill="white"/>{"".join(placed)}</svg>'
    )


def heat_map(matrix: Matrix, title: str) -> tuple[str, float, float]:
    """Draw a cell for each stage and domain: the value and its rise since the best; the redder, the larger the rise."""
    rows = [row for row in matrix.rows if any((row, domain) in matrix.values for domain in matrix.domains)]
    left = max(60 + 7 * max(len(shorten(row, 24)) for row in rows), 116)
    parts = [text_at(0, 14, title, size=14, weight="bold")]
    for column, domain in enumerate(matrix.domains):
        parts.append(
            text_at(left + (column + 0.5) * _CELL, 44, shorten_middle(domain, 15), anchor="middle", weight="bold")
        )
    for line, row in enumerate(rows):
        top = 52 + line * _ROW
        name = "before training" if row == START else f"{matrix.rows.index(row)} {row}"
        parts.append(text_at(left - 8, top + 24, shorten(name, 26), anchor="end"))
        for column, domain in enumerate(matrix.domains):
            parts.append(_cell(matrix, row, domain, left + column * _CELL, top))
    height = 52 + len(rows) * _ROW + 24
    parts.append(
        text_at(
            0,
            height - 4,
            "framed: the stage that trains on it; +: risen since its best, full red from 50 %",
            colour=FAINT,
            size=11,
        )
    )
    return "".join(parts), max(left + len(matrix.domains) * _CELL, 460), height


def _cell(matrix: Matrix, row: str, domain: str, x: float, y: float) -> str:
    value = matrix.values.get((row, domain))
    if value is None:
        return text_at(x + _CELL / 2, y + 24, "-", anchor="middle", colour=FAINT)
    rise = matrix.forgotten(row, domain) or 0.0
    best = abs(value - rise)
    share = min(rise / best / _WORST, 1.0) if best and math.isfinite(rise) else float(rise > 0)
    fill = (
        f"rgb({255 - round(33 * share)},{255 - round(180 * share)},{255 - round(190 * share)})" if share else "#eef6f0"
    )
    home = matrix.homes.get(domain) == row
    frame = f'stroke="{INK}" stroke-width="2"' if home else 'stroke="#cccccc"'
    box = f'<rect x="{x + 2:g}" y="{y + 2:g}" width="{_CELL - 4}" height="{_ROW - 4}" rx="4" fill="{fill}" {frame}/>'
    shown = f"{value:.4g}" + (f"  +{rise:.3g}" if rise else "")
    return box + text_at(x + _CELL / 2, y + 25, shown, anchor="middle")


def curves(
    lines: Mapping[str, Points],
    title: str,
    edges: Sequence[tuple[float, str]],
    marks: Sequence[tuple[float, str]] = (),
    *,
    width: float = 860,
    height: float = 260,
    is_rate: bool = False,
    unit: str = "step",
) -> tuple[str, float, float]:
    """Draw lines over steps, or another unit.

    ``edges`` are where stages begin, with their names; ``marks`` are decisions (``kind: reason``), shown on hover and
    in the legend.
    """
    lines = {name: [p for p in points if math.isfinite(p[1])] for name, points in lines.items()}
    lines = {name: points for name, points in lines.items() if points}
    values = [y for points in lines.values() for _, y in points]
    if not values:
        return "", width, 0
    last = max(
        [x for points in lines.values() for x, _ in points] + [x for x, _ in edges] + [1 if unit == "step" else 1e-9]
    )
    place = _Place((70.0, 46.0, width - 90, height - 78), last, min(values) if not is_rate else 0.0, max(values))
    parts = [text_at(0, 14, title, size=14, weight="bold"), _axes(place, is_rate, unit), _edges(place, edges)]
    for (name, points), colour in zip(lines.items(), colour_cycle(len(lines)), strict=True):
        path = " ".join(f"{place.x(x):.1f},{place.y(y):.1f}" for x, y in points)
        tooltip = f"<title>{escape(name)}</title>"
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8">{tooltip}</polyline>')
        if not is_rate and len(points) <= _DOTTED:
            parts += [f'<circle cx="{place.x(x):.1f}" cy="{place.y(y):.1f}" r="2.2" '
                      f'fill="{colour}"><title>{escape(name)}: {y:.4g} after {unit} '
                      f'{x:.6g}</title></circle>' for x, y in points]  # fmt: skip
    base = place.box[1] + place.box[3]
    parts += [_triangle(place.x(x), base - 9, words) for x, words in marks]
    named = len(lines) > 1 or not (is_rate or next(iter(lines)) in title.lower())
    legend, below = _legend(lines if named else {}, marks, width, height)
    return "".join([*parts, legend]), width, height + below


class _Place:
    """Where a point of the data lies in the picture. The range of values begins and ends at a tick."""

    def __init__(self, box: tuple[float, float, float, float], last: float, low: float, high: float) -> None:
        self.box, self.last = box, last
        high = high if high > low else low + (abs(low) or 1.0)
        every = round_step(high - low, 5)
        self.low, self.high = math.floor(low / every + 1e-9) * every, math.ceil(high / every - 1e-9) * every
        self.ticks = _multiples(self.low, self.high, every)

    def x(self, step: float) -> float:
        return self.box[0] + step / self.last * self.box[2]

    def y(self, value: float) -> float:
        return self.box[1] + (self.high - value) / (self.high - self.low) * self.box[3]


def round_step(span: float, most: int) -> float:
    """Return the distance of at most ``most`` ticks over a span: 1, 2 or 5 times a power of ten.

    >>> round_step(24, 6), round_step(0.37, 5), round_step(1_000_000, 5)
    (5.0, 0.1, 200000.0)
    """
    power = 10.0 ** math.floor(math.log10(span / most))
    return next(float(f"{m * power:.6g}") for m in (1, 2, 5, 10) if m * power * most >= span * (1 - 1e-9))


def _multiples(low: float, high: float, every: float) -> list[float]:
    first, last = math.ceil(low / every - 1e-9), math.floor(high / every + 1e-9)
    return [float(f"{k * every:.10g}") for k in range(first, last + 1)]


def _axes(place: _Place, is_rate: bool, unit: str) -> str:
    left, top, width, height = place.box
    parts = [f'<path d="M{left:g},{top:g} v{height:g} h{width:g}" fill="none" stroke="{INK}"/>']
    for value in place.ticks:
        y = place.y(value)
        parts.append(f'<path d="M{left:g},{y:.1f} h{width:g}" stroke="#e5e5e5"/>')
        parts.append(text_at(left - 6, y + 4, rate(value) if is_rate else f"{value:.6g}", anchor="end", size=11))
    every = round_step(place.last, 8)
    every = max(every, 1.0) if unit == "step" else every
    for step in _multiples(0, place.last, every):
        x = place.x(step)
        parts.append(f'<path d="M{x:.1f},{top + height:g} v4" stroke="{INK}"/>')
        label = f"{step:,.0f}" if step >= 1000 else f"{step:.6g}"
        parts.append(text_at(x, top + height + 16, label, anchor="middle", size=11))
    parts.append(text_at(left + width, top + height + 29, f"{unit}s", anchor="end", size=11, colour=FAINT))
    return "".join(parts)


def _edges(place: _Place, edges: Sequence[tuple[float, str]]) -> str:
    """Draw where stages begin; a name may be as long as the space to the next one."""
    left, top, width, height = place.box
    parts = []
    ends = [*(place.x(step) for step, _ in edges[1:]), left + width + 20]
    for (step, name), end in zip(edges, ends, strict=bool(edges)):
        x = place.x(step)
        parts.append(f'<path d="M{x:.1f},{top:g} v{height:g}" stroke="{FAINT}" stroke-dasharray="4 4"/>')
        if (room := int((end - x - 4) / 6)) >= 2:
            shown = shorten(name, min(room, 24)) if room >= 6 else name.split(" ")[0][:room]
            parts.append(text_at(x + 4, top - 4, shown, size=11, colour=FAINT))
    return "".join(parts)


def _legend(
    lines: Mapping[str, Points], marks: Sequence[tuple[float, str]], width: float, top: float
) -> tuple[str, float]:
    """Draw the legend below the picture, and return its height, too. A triangle is a decision of the run."""
    items = [(f'<rect x="0" y="-9" width="12" height="10" fill="{c}"/>', shorten_middle(name, 40))
             for name, c in zip(lines, colour_cycle(len(lines)), strict=True)]  # fmt: skip
    if marks:
        kinds = ", ".join(dict.fromkeys(words.split(":")[0] for _, words in marks))
        items.append((_triangle(6, -9, "a decision"), f"a decision ({kinds}); its reason shows on hover"))
    parts, x, y = [], 70.0, top + 8
    for sign, words in items:
        need = 30 + 6.6 * len(words)
        if x > 70 and x + need > width:
            x, y = 70.0, y + 18
        parts.append(f'<g transform="translate({x:.1f},{y:g})">{sign}{text_at(17, 0, words, size=12)}</g>')
        x += need
    return "".join(parts), y + 8 - top if items else 0


def _triangle(x: float, y: float, words: str) -> str:
    return f'<path d="M{x:.1f},{y:.1f} l-5,9 h10 z" fill="#D55E00"><title>{escape(words)}</title></path>'


def colour_cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def text_at(
    x: float, y: float, words: str, *, anchor: str = "start", size: int = 12, weight: str = "normal", colour: str = INK
) -> str:
    look = f'font-size="{size}" font-weight="{weight}" fill="{colour}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}>{escape(words)}</text>'
