"""Pictures of a run as plain SVG: the stage x domain heat map, and curves over the run's steps. No package, no script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from hf_stages.reports._matrix import START, Matrix
from hf_stages.reports._text import rate, shorten

Points = Sequence[tuple[float, float]]
# Wong's palette (Nature Methods 8, 441), told apart by colour-blind readers.
COLOURS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8a7a00", "#555555"]
_INK, _FAINT = "#222222", "#888888"
_FONT = 'font-family="system-ui, sans-serif"'
_CELL, _ROW, _HEAD = 118, 40, 30
_WORST = 0.5
"""A rise of this share of the best is drawn in full red."""


def document(parts: Sequence[tuple[str, float, float]], pad: float = 16) -> str:
    """Stack pictures, each (svg, width, height), into one SVG document."""
    width = max(w for _, w, _ in parts) + 2 * pad
    top, placed = pad, []
    for svg, _, height in parts:
        placed.append(f'<g transform="translate({pad},{top:g})">{svg}</g>')
        top += height + pad
    size = f'width="{width:g}" height="{top:g}" viewBox="0 0 {width:g} {top:g}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {_FONT}><rect width="100%" height="100%" fill="white"/>{"".join(placed)}</svg>'


def heat_map(matrix: Matrix, title: str) -> tuple[str, float, float]:
    """A cell for each stage and domain: the value, what it rose since its best, redder the more of it."""
    rows = [row for row in matrix.rows if any((row, domain) in matrix.values for domain in matrix.domains)]
    left = max(60 + 7 * max(len(shorten(row, 24)) for row in rows), 116)
    parts = [_text(0, 14, title, size=14, weight="bold")]
    for column, domain in enumerate(matrix.domains):
        parts.append(_text(left + (column + 0.5) * _CELL, 44, shorten(domain, 15), anchor="middle", weight="bold"))
    for line, row in enumerate(rows):
        top = 52 + line * _ROW
        name = "before training" if row == START else f"{matrix.rows.index(row)} {row}"
        parts.append(_text(left - 8, top + 24, shorten(name, 26), anchor="end"))
        for column, domain in enumerate(matrix.domains):
            parts.append(_cell(matrix, row, domain, left + column * _CELL, top))
    height = 52 + len(rows) * _ROW + 24
    parts.append(
        _text(
            0,
            height - 4,
            "framed: the stage that trains on it; +: risen since its best, full red from 50 %",
            colour=_FAINT,
            size=11,
        )
    )
    return "".join(parts), max(left + len(matrix.domains) * _CELL, 460), height


def _cell(matrix: Matrix, row: str, domain: str, x: float, y: float) -> str:
    value = matrix.values.get((row, domain))
    if value is None:
        return _text(x + _CELL / 2, y + 24, "-", anchor="middle", colour=_FAINT)
    rise = matrix.forgotten(row, domain) or 0.0
    best = abs(value - rise)
    share = min(rise / best / _WORST, 1.0) if best and math.isfinite(rise) else float(rise > 0)
    fill = (
        f"rgb({255 - round(33 * share)},{255 - round(180 * share)},{255 - round(190 * share)})" if share else "#eef6f0"
    )
    home = matrix.homes.get(domain) == row
    frame = f'stroke="{_INK}" stroke-width="2"' if home else 'stroke="#cccccc"'
    box = f'<rect x="{x + 2:g}" y="{y + 2:g}" width="{_CELL - 4}" height="{_ROW - 4}" rx="4" fill="{fill}" {frame}/>'
    told = f"{value:.4g}" + (f"  +{rise:.3g}" if rise else "")
    return box + _text(x + _CELL / 2, y + 25, told, anchor="middle")


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
    """Lines over steps, or another unit. ``edges`` are where stages begin, with their names; ``marks`` are decisions, told on hover."""
    lines = {name: [p for p in points if math.isfinite(p[1])] for name, points in lines.items()}
    lines = {name: points for name, points in lines.items() if points}
    values = [y for points in lines.values() for _, y in points]
    if not values:
        return "", width, 0
    last = max(
        [x for points in lines.values() for x, _ in points] + [x for x, _ in edges] + [1 if unit == "step" else 1e-9]
    )
    low, high = min(values) if not is_rate else 0.0, max(values)
    high = high if high > low else low + 1
    box = (70.0, 46.0, width - 90, height - 78)
    place = _Place(box, last, low, high)
    parts = [_text(0, 14, title, size=14, weight="bold"), _axes(place, is_rate), _edges(place, edges)]
    for (name, points), colour in zip(lines.items(), _cycle(len(lines)), strict=True):
        path = " ".join(f"{place.x(x):.1f},{place.y(y):.1f}" for x, y in points)
        told = f"<title>{escape(name)}</title>"
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8">{told}</polyline>')
        if not is_rate:
            parts += [f'<circle cx="{place.x(x):.1f}" cy="{place.y(y):.1f}" r="2.2" fill="{colour}"><title>{escape(name)}: {y:.4g} after {unit} {x:.6g}</title></circle>' for x, y in points]  # fmt: skip
    for x, words in marks:
        at, top = place.x(x), box[1] + box[3]
        parts.append(
            f'<path d="M{at:.1f},{top - 9:.1f} l-5,9 h10 z" fill="#D55E00"><title>{escape(words)}</title></path>'
        )
    if len(lines) > 1 or not is_rate:
        parts.append(_legend(lines, width))
    return "".join(parts), width, height


class _Place:
    """Where a point of the data lies in the picture."""

    def __init__(self, box: tuple[float, float, float, float], last: float, low: float, high: float) -> None:
        self.box, self.last, self.low, self.high = box, last, low, high

    def x(self, step: float) -> float:
        return self.box[0] + step / self.last * self.box[2]

    def y(self, value: float) -> float:
        return self.box[1] + (self.high - value) / (self.high - self.low) * self.box[3]


def _axes(place: _Place, is_rate: bool) -> str:
    left, top, width, height = place.box
    parts = [f'<path d="M{left:g},{top:g} v{height:g} h{width:g}" fill="none" stroke="{_INK}"/>']
    for k in range(5):
        value = place.low + k / 4 * (place.high - place.low)
        y = place.y(value)
        parts.append(f'<path d="M{left:g},{y:.1f} h{width:g}" stroke="#e5e5e5"/>')
        parts.append(_text(left - 6, y + 4, rate(value) if is_rate else f"{value:.3g}", anchor="end", size=11))
        step = place.last * k / 4
        parts.append(
            _text(
                place.x(step),
                top + height + 16,
                f"{step:,.0f}" if place.last >= 8 else f"{step:.2g}",
                anchor="middle",
                size=11,
            )
        )
    return "".join(parts)


def _edges(place: _Place, edges: Sequence[tuple[float, str]]) -> str:
    _, top, _, height = place.box
    parts = []
    for step, name in edges:
        x = place.x(step)
        parts.append(f'<path d="M{x:.1f},{top:g} v{height:g}" stroke="{_FAINT}" stroke-dasharray="4 4"/>')
        parts.append(_text(x + 4, top - 4, shorten(name, 18), size=11, colour=_FAINT))
    return "".join(parts)


def _legend(lines: Mapping[str, Points], width: float) -> str:
    parts, x = [], width - 20 - sum(26 + 7 * len(shorten(name, 20)) for name in lines)
    x = max(x, 240)
    for name, colour in zip(lines, _cycle(len(lines)), strict=True):
        parts.append(f'<rect x="{x:g}" y="5" width="12" height="10" fill="{colour}"/>')
        parts.append(_text(x + 16, 14, shorten(name, 20), size=12))
        x += 26 + 7 * len(shorten(name, 20))
    return "".join(parts)


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def _text(
    x: float, y: float, words: str, *, anchor: str = "start", size: int = 12, weight: str = "normal", colour: str = _INK
) -> str:
    look = f'font-size="{size}" font-weight="{weight}" fill="{colour}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}>{escape(words)}</text>'
