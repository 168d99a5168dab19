"""Draws the trials of a stage: gain on the new domains against loss on the earlier ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hf_stages.reports.pages.svg import COLOURS, document, text_at
from hf_stages.reports.pages.versus_page import check_suffix, page, write
from hf_stages.reports.tables.probe_table import probe_table
from hf_stages.reports.text import rate
from hf_stages.reports.trials import Trial, Trials

_LEFT, _TOP, _WIDTH, _HEIGHT = 70.0, 50.0, 640.0, 320.0


def save_probe(trials: Trials, path: str | Path) -> None:
    """Write the page (``.html``) or the picture (``.svg``) to ``path``."""
    path = check_suffix(path)
    if not any(trial.finite for trial in trials.tried):
        raise ValueError(f"save: no trial of {trials.stage!r} stayed finite; there is nothing to draw")
    picture = document([_picture(trials)])
    write(
        path,
        page(f"Learning rates for {trials.stage}", picture, probe_table(trials)) if path.suffix == ".html" else picture,
    )


def _picture(trials: Trials) -> tuple[str, float, float]:
    """Draw a line of points for each share of replay, in order of rate. Points left of the red line keep the budget."""
    finite = [t for t in trials.tried if t.finite]
    points = {id(t): (100 * t.forgotten(trials.earlier), 100 * t.gain(trials.new)) for t in finite}
    xs, ys = ([p[k] for p in points.values()] for k in (0, 1))
    x_of = _scale([*xs, 0.0, 100 * trials.budget], _LEFT, _WIDTH)
    y_of = _scale([*ys, 0.0], _TOP + _HEIGHT, -_HEIGHT)
    title = (
        f"{trials.stage}: gain on {', '.join(trials.new)} against loss on {', '.join(trials.earlier)}, in % of the "
        "boundary's loss"
    )
    parts = [text_at(0, 14, title, size=14, weight="bold")]
    parts.append(f'<path d="M{_LEFT:g},{_TOP:g} v{_HEIGHT:g} h{_WIDTH:g}" fill="none" stroke="#222222"/>')
    for values, of, flat in ((xs, x_of, True), (ys, y_of, False)):
        for value in sorted({0.0, min(values), max(values)}):
            x, y = (of(value), _TOP + _HEIGHT + 16) if flat else (_LEFT - 6, of(value) + 4)
            parts.append(text_at(x, y, f"{value:.3g}", anchor="middle" if flat else "end", size=11))
    parts.append(text_at(_LEFT + _WIDTH / 2, _TOP + _HEIGHT + 34, "forgotten, %", anchor="middle", size=11))
    parts.append(text_at(_LEFT - 6, _TOP - 10, "gain, %", anchor="end", size=11))
    edge = x_of(100 * trials.budget)
    parts.append(f'<path d="M{edge:.1f},{_TOP:g} v{_HEIGHT:g}" stroke="#c0392b" stroke-dasharray="4 4"/>')
    parts.append(text_at(edge + 4, _TOP - 4, f"budget {100 * trials.budget:.3g} %", size=11, colour="#c0392b"))
    for number, share in enumerate(sorted({t.replay for t in finite})):
        own = sorted((t for t in finite if t.replay == share), key=lambda t: t.rate)
        colour = COLOURS[number % len(COLOURS)]
        line = " ".join(f"{x_of(points[id(t)][0]):.1f},{y_of(points[id(t)][1]):.1f}" for t in own)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
        parts.append(text_at(_LEFT + 8 + 130 * number, 34, f"replay {100 * share:.3g} %", size=12, colour=colour))
        parts += [_dot(t, x_of(points[id(t)][0]), y_of(points[id(t)][1]), colour, t is trials.pick) for t in own]
    return "".join(parts), _LEFT + _WIDTH + 60, _TOP + _HEIGHT + 44


def _dot(trial: Trial, x: float, y: float, colour: str, picked: bool) -> str:
    ring = (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="9" fill="none" stroke="#222222" stroke-width="1.5"/>' if picked else ""
    )
    return f'{ring}<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' + text_at(
        x + 7, y - 7, rate(trial.rate), size=11
    )


def _scale(values: list[float], start: float, length: float) -> Callable[[float], float]:
    low, high = min(values), max(values)
    pad = 0.06 * (high - low or 1.0)
    low, high = low - pad, high + pad
    return lambda value: start + (value - low) / (high - low) * length
