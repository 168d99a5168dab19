"""Writes a comparison of runs to a file: a page (HTML), the panels alone (SVG), or a picture (PNG, PDF)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hf_stages.reports.pages.svg import document
from hf_stages.reports.pages.versus_page import page, write
from hf_stages.reports.panels.figure_panels import save_figure
from hf_stages.reports.panels.layout import check_comparable, lay_out
from hf_stages.reports.panels.run_curves import RunCurves
from hf_stages.reports.panels.svg_panels import draw_panels
from hf_stages.reports.tables.health_table import health_table

_SUFFIXES = (".html", ".svg", ".png", ".pdf")


def save_panels(runs: Sequence[RunCurves], path: str | Path, *, eval_set: str | None = None) -> None:
    """Write the three panels of one or more runs.

    Args:
        runs: What they logged.
        path: Its suffix says the format: html, svg, png or pdf. The last two need matplotlib.
        eval_set: The evaluation set whose perplexity is shown.
    """
    path = check_target(path)
    check_comparable(runs, eval_set)
    panels = lay_out(runs, eval_set)
    if path.suffix in (".png", ".pdf"):
        save_figure(panels, path)
        return
    picture = document([draw_panels(panels)])
    write(path, picture if path.suffix == ".svg" else page("Runs compared", picture, health_table(runs, eval_set)))


def check_target(path: str | Path) -> Path:
    """Refuse a file that could not be written, before the runs are read."""
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"output: expected a file that ends in .html, .svg, .png or .pdf, got {str(path)!r}")
    if not path.parent.is_dir():
        raise ValueError(f"output: there is no folder {path.parent}")
    return path
