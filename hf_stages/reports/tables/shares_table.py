"""Writes realized and declared shares of sources as text."""

from __future__ import annotations

from hf_stages.reports.run_folder import ReadRun
from hf_stages.reports.shares import StageShares, read_shares
from hf_stages.reports.text import count, shorten

_HEADS = ["stage", "source", "share", "first -> last", "examples", "tokens", "passes"]
_LEFT = 4


def shares_table(run: ReadRun) -> str:
    """Write a row for each source of stages that have several; empty where no stage has."""
    stages = read_shares(run)
    if not stages:
        return ""
    rows = [_HEADS, *(row for stage in stages for row in _rows(stage))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
    lines = []
    for row in rows:
        cells = [c.ljust(w) if i < _LEFT else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(["Sources drawn: share realized (declared)", *lines])


def _rows(stage: StageShares) -> list[list[str]]:
    rows = []
    for number, name in enumerate(stage.sources):
        totals, first, last = stage.totals.get(name, {}), stage.points[0], stage.points[-1]
        moved = f"{_percent(first.realized.get(name))} -> {_percent(last.realized.get(name))}"
        if first.declared is not None and last.declared is not None:
            moved += f" ({_percent(first.declared.get(name))} -> {_percent(last.declared.get(name))})"
        share = f"{_percent(totals.get('share'))} ({_percent(totals.get('declared'))})" if totals else "not finished"
        passes = totals.get("passes")
        rows.append(
            [
                shorten(f"{stage.index} {stage.name}", 30) if not number else "",
                shorten(name, 24),
                share,
                moved,
                count(totals.get("examples")),
                count(totals.get("tokens")),
                "-" if passes is None else f"{passes:.3g}",
            ]
        )
    return rows


def _percent(share: float | None) -> str:
    """Write a share in percent.

    >>> _percent(0.3251), _percent(1.0), _percent(0.0004), _percent(None)
    ('32.5 %', '100 %', '0.04 %', '-')
    """
    if share is None:
        return "-"
    text = f"{100 * share:.1f}" if share >= 0.001 or not share else f"{100 * share:.1g}"
    return f"{text.removesuffix('.0')} %"
