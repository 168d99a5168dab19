"""A comparison of arms as one HTML page, or as its pictures: quality against training time."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path

from hf_stages.reports.arms import ArmRun, Comparison
from hf_stages.reports.pages.report_page import _STYLE
from hf_stages.reports.pages.svg import curves, document
from hf_stages.reports.tables.versus_table import versus_table


def save_versus(comparison: Comparison, path: str | Path) -> None:
    """Write it to ``path``, whose suffix says what: ``.html`` or ``.svg``."""
    path = check_suffix(path)
    text = versus_html(comparison) if path.suffix == ".html" else document(_pictures(comparison))
    write(path, text)


def check_suffix(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix not in (".html", ".svg"):
        raise ValueError(f"save: expected a file that ends in .html or .svg, got {str(path)!r}")
    if not path.parent.is_dir():
        raise ValueError(f"save: there is no folder {path.parent}")
    return path


def write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def versus_html(comparison: Comparison) -> str:
    """Return the page."""
    return page("Arms compared", document(_pictures(comparison)), versus_table(comparison))


def page(title: str, picture: str, text: str) -> str:
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    body = f"<h1>{escape(title)}</h1>{picture}<pre>{escape(text)}</pre>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def _pictures(comparison: Comparison) -> list[tuple[str, float, float]]:
    """Draw for each domain a line for each arm: loss over seconds of training, both means over the seeds."""
    domains = list(dict.fromkeys(domain for run in comparison.runs for domain in run.over_time))
    seeds = len(comparison.seeds)
    seeds_text = f"mean of {seeds} seeds" if seeds > 1 else "one seed"
    found = []
    for domain in domains:
        lines = {arm: mean_line(comparison.runs_of(arm), domain) for arm in comparison.arms}
        found.append(curves(lines, f"{domain}: loss over seconds of training ({seeds_text})", [], unit="second"))
    return [picture for picture in found if picture[2]]


def mean_line(runs: Sequence[ArmRun], domain: str) -> list[tuple[float, float]]:
    """Return the mean over seeds, point by point.

    Seeds are measured at the same steps; the shortest one ends the line.
    """
    each = [run.over_time.get(domain, ()) for run in runs]
    points = [tuple(statistics.fmean(values) for values in zip(*at, strict=True)) for at in zip(*each, strict=False)]
    return [(x, y) for x, y in points if math.isfinite(y)]
