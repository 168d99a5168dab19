"""Draws shares of sources over a stage's progress: realized shares as stacked bands, declared ones as dashed lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from hf_stages.reports.pages.svg import FAINT, INK, colour_cycle, text_at
from hf_stages.reports.shares import SharePoint, StageShares
from hf_stages.reports.text import shorten

WIDTH, COLUMNS = 860, 3
_LEFT, _GAP, _HEIGHT, _BELOW = 44, 26, 130, 52
_LINE = 20
"""The height of a line of the legend."""
_LETTER = 7


def share_panels(stages: Sequence[StageShares]) -> tuple[str, float, float]:
    """Draw a panel for each stage, three in a row. A source has the same colour in all of them."""
    if not stages:
        return "", WIDTH, 0
    names = list(dict.fromkeys(name for stage in stages for name in stage.sources))
    colours = dict(zip(names, colour_cycle(len(names)), strict=True))
    legend, top = _legend(colours)
    columns = min(len(stages), COLUMNS)
    wide = (WIDTH - _LEFT - (columns - 1) * _GAP) / columns
    parts = [text_at(0, 14, "Shares of the sources over each stage's progress", size=14, weight="bold"), legend]
    for place, stage in enumerate(stages):
        row, column = divmod(place, columns)
        x, y = _LEFT + column * (wide + _GAP), top + 24 + row * (_HEIGHT + _BELOW)
        parts.append(_panel(stage, colours, (x, y, wide), labelled=column == 0))
    return "".join(parts), WIDTH, top + 24 + -(-len(stages) // columns) * (_HEIGHT + _BELOW) - 16


def _legend(colours: Mapping[str, str]) -> tuple[str, float]:
    """Draw the legend below the title, in as many lines as needed; also return where it ends."""
    parts, x, y = [], 0.0, 24.0
    for name, colour in colours.items():
        need = 30 + _LETTER * len(shorten(name, 24))
        if x and x + need > WIDTH - 220:
            x, y = 0.0, y + _LINE
        parts.append(f'<rect x="{x:g}" y="{y:g}" width="12" height="10" fill="{colour}" fill-opacity="0.6"/>')
        parts.append(text_at(x + 16, y + 9, shorten(name, 24)))
        x += need
    parts.append(_dashed([(WIDTH - 210, 29.0), (WIDTH - 182, 29.0)], "key"))
    parts.append(text_at(WIDTH - 176, 33, "declared; bands: realized", colour=FAINT, size=11))
    return "".join(parts), y + _LINE


def _panel(stage: StageShares, colours: Mapping[str, str], place: tuple[float, float, float], *, labelled: bool) -> str:
    x, y, wide = place
    title = f"{stage.index} {stage.name}"
    note = f" (of {stage.unit})" if stage.unit else " (so far)"
    room = int(wide / _LETTER) - len(note)
    parts = [text_at(x, y - 6, shorten(title, room) + note, colour=INK)]
    runs = [(point.t, _band_edges(point.realized, stage.sources)) for point in stage.points]
    tooltips = [_tooltip(stage, name) for name in stage.sources]
    edges = _ends_of(stage.points)
    for number, name in enumerate(stage.sources):
        upper = [(x + t * wide, y + _HEIGHT * (1 - sums[number + 1])) for t, sums in _with_ends(runs, edges)]
        lower = [(x + t * wide, y + _HEIGHT * (1 - sums[number])) for t, sums in _with_ends(runs, edges)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in [*upper, *reversed(lower)])
        parts.append(
            f'<polygon points="{path}" fill="{colours[name]}" '
            f'fill-opacity="0.6"><title>{escape(tooltips[number])}</title></polygon>'
        )
    sums = [
        (point.t, _band_edges(point.declared, stage.sources)) for point in stage.points if point.declared is not None
    ]
    if sums:
        for number in range(1, len(stage.sources)):  # the last edge is the top
            line = [(x + t * wide, y + _HEIGHT * (1 - s[number])) for t, s in _with_ends(sums, edges)]
            parts.append(_dashed(line, f"declared, {stage.sources[number - 1]}"))
    return "".join([*parts, _frame(x, y, wide, labelled)])


def _band_edges(shares: Mapping[str, float], names: Sequence[str]) -> list[float]:
    """Return the edges between the bands, from 0 up."""
    sums = [0.0]
    for name in names:
        sums.append(sums[-1] + shares.get(name, 0.0))
    return sums


def _ends_of(points: Sequence[SharePoint]) -> tuple[float, float]:
    """Return where the first part begins and the last one ends; points stand in the middle of their parts."""
    last = points[-1].t
    before = (points[-2].t + last) / 2 if len(points) > 1 else 0.0
    return 0.0, min(2 * last - before, 1.0)


def _with_ends(
    runs: Sequence[tuple[float, list[float]]], edges: tuple[float, float]
) -> list[tuple[float, list[float]]]:
    return [(edges[0], runs[0][1]), *runs, (edges[1], runs[-1][1])]


def _tooltip(stage: StageShares, name: str) -> str:
    first, last = stage.points[0].realized.get(name, 0.0), stage.points[-1].realized.get(name, 0.0)
    return f"{name}: {first:.1%} -> {last:.1%}"


def _frame(x: float, y: float, wide: float, labelled: bool) -> str:
    parts = [f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{_HEIGHT}" fill="none" stroke="{INK}"/>']
    for part in (0.0, 0.5, 1.0):
        at = y + _HEIGHT * (1 - part)
        if 0 < part < 1:
            parts.append(f'<path d="M{x:.1f},{at:.1f} h{wide:.1f}" stroke="{INK}" stroke-opacity="0.15"/>')
        if labelled:
            parts.append(text_at(x - 5, at + 4, f"{part:.0%}", anchor="end", size=11))
        anchor = "start" if not part else "end" if part == 1 else "middle"
        parts.append(text_at(x + part * wide, y + _HEIGHT + 15, f"{part:.0%}", anchor=anchor, size=11))
    return "".join(parts)


def _dashed(line: Sequence[tuple[float, float]], title: str) -> str:
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in line)
    return (
        f'<polyline points="{path}" fill="none" stroke="{INK}" stroke-width="1.4" stroke-dasharray="5 '
        f'3"><title>{escape(title)}</title></polyline>'
    )
