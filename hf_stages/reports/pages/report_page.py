"""Writes a run's report to a file: an HTML page without scripts and links, or its pictures as one SVG."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from html import escape
from pathlib import Path
from typing import Any

from hf_stages.reports.cards.run_facts import run_facts, settings_of
from hf_stages.reports.decisions import decisions
from hf_stages.reports.matrix import matrix_of, metrics_of
from hf_stages.reports.pages.share_panels import share_panels
from hf_stages.reports.pages.svg import curves, document, heat_map
from hf_stages.reports.panels.layout import lay_out
from hf_stages.reports.panels.read_curves import curves_of_run, stages_of
from hf_stages.reports.panels.svg_panels import draw_panels
from hf_stages.reports.run_folder import ReadRun
from hf_stages.reports.run_report import bench_tables
from hf_stages.reports.shares import read_shares
from hf_stages.reports.tables.depth_table import depth_table
from hf_stages.reports.tables.domain_table import domain_table
from hf_stages.reports.tables.result_table import run_status, stage_cells
from hf_stages.reports.tables.shares_table import shares_table

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:1180px;margin:2em auto;padding:0 1em}"
    ".wide{overflow-x:auto}"
    "svg{display:block}"
    "pre{background:#f6f6f4;padding:.8em;overflow-x:auto;font-size:13px;line-height:1.4}"
    "pre.words{white-space:pre-wrap}"
    "table{border-collapse:collapse;font-size:13px}"
    "th,td{border-bottom:1px solid #ddd;padding:.3em .7em;text-align:left;vertical-align:top;overflow-wrap:anywhere}"
    "th{background:#f6f6f4;white-space:nowrap}"
    ".n{text-align:right;white-space:nowrap}"
    ".problem{background:#fdecea;border-left:4px solid #c0392b;padding:.5em .8em}"
    "@media print{pre{white-space:pre-wrap;font-size:9px}.wide{overflow:visible}svg{max-width:100%;height:auto}}"
)
_TITLES = {"loss": "Loss per item", "bits_per_byte": "Bits per byte"}
_ACTIONS = ("alert", "skip", "cut_lr", "rollback", "replay", "stop")
"""The decisions that pictures mark."""
_PREFIXES = ("eval_", "start_")


def save_report(run: ReadRun, path: str | Path) -> None:
    """Write the page (``.html``) or the pictures (``.svg``) to ``path``."""
    path = Path(path)
    if path.suffix not in (".html", ".svg"):
        raise ValueError(f"report: expected a file that ends in .html or .svg, got {str(path)!r}")
    pictures = [p for p in (*_pictures(run), *_health(run), share_panels(read_shares(run))) if p[2]]
    if path.suffix == ".svg" and not pictures:
        raise ValueError(f"{run.out}: nothing was measured yet that could be drawn")
    text = report_html(run) if path.suffix == ".html" else document(pictures)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def report_html(run: ReadRun) -> str:
    """Return the page."""
    name = escape(str(run.out))
    parts = [f"<h1>{name}</h1>", *(f'<p class="problem">{escape(problem)}</p>' for problem in run.problems)]
    parts.append(_table([["", ""], *map(list, run_facts(run))]))
    cells, right = stage_cells(run)
    parts.append(f"<h2>Stages</h2>{_table(cells, right)}<p>{escape(run_status(run))}</p>")
    if settings := settings_of(run):
        parts.append(f"<h2>Settings</h2>{_table(settings)}")
    if pictures := _pictures(run):
        parts.append("<h2>Training and domains</h2>" + "".join(_wide(document([picture])) for picture in pictures))
    parts += [f"<pre>{escape(table)}</pre>" for table in (domain_table(run), depth_table(run)) if table]
    parts += [f"<h2>Health</h2>{_wide(document([picture]))}" for picture in _health(run)]
    if shares := shares_table(run):
        parts.append(f"<h2>Sources</h2>{_wide(document([share_panels(read_shares(run))]))}<pre>{escape(shares)}</pre>")
    if found := decisions(run.ledger):
        words = "\n".join(f"step {s}, {stage}: {words}" for s, stage, words in found)
        parts.append(f'<h2>Decisions and notices</h2><pre class="words">{escape(words)}</pre>')
    parts += [f"<h2>Size and speed</h2><pre>{escape(text)}</pre>" for text in bench_tables(run)]
    head = f'<meta charset="utf-8"><title>{name}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _wide(inner: str) -> str:
    """Let content that is wider than the page scroll."""
    return f'<div class="wide">{inner}</div>'


def _table(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Write a table. The first row is its heads, left out where they are empty; long words break."""

    def line(row: Sequence[str], tag: str) -> str:
        cells = [f"<{tag}{' class=n' if i in right else ''}>{escape(cell)}</{tag}>" for i, cell in enumerate(row)]
        return f"<tr>{''.join(cells)}</tr>"

    heads, *body = rows
    shown = line(heads, "th") if any(heads) else ""
    return _wide(f"<table>{shown}{''.join(line(row, 'td') for row in body)}</table>") if body else ""


def _pictures(run: ReadRun) -> list[tuple[str, float, float]]:
    found = []
    for metric in (name for name in metrics_of(run) if name in _TITLES):
        matrix = matrix_of(run, metric)
        if matrix.values:
            found.append(heat_map(matrix, f"{_TITLES[metric]} after each stage"))
    edges, marks = (
        _edges(run),
        [(step, words) for step, _, words in decisions(run.ledger, _ACTIONS)],
    )
    losses = [(log["step"], log["loss"]) for log in run.logs if isinstance(log.get("loss"), int | float)]
    if losses:
        found.append(curves({"training loss": losses}, "Training loss over steps", edges, marks))
    for metric, title in _TITLES.items():
        lines = _lines(run, metric)
        if any(lines.values()):
            found.append(curves(lines, f"{title} over steps", edges, marks))
    rates = [(log["step"], log["learning_rate"]) for log in run.logs if "learning_rate" in log]
    if rates:
        found.append(curves({"learning rate": rates}, "Learning rate", edges, marks, height=200, is_rate=True))
    return [picture for picture in found if picture[2]]


def _health(run: ReadRun) -> list[tuple[str, float, float]]:
    """Draw the three panels of a run that logged its hidden-state correlation, or was evaluated at recurrences."""
    curves = curves_of_run(run, run.out.name or str(run.out))
    recurrent = any(depth is not None for depths in (curves.perplexity or {}).values() for depth in depths)
    return [draw_panels(lay_out([curves]))] if curves.correlation or recurrent else []


def _edges(run: ReadRun) -> list[tuple[float, str]]:
    return [(float(mark.step), mark.words) for mark in stages_of(run)]


def _lines(run: ReadRun, metric: str) -> dict[str, list[tuple[float, float]]]:
    """Return for each domain every evaluation in the log: within stages, at their first step, and at their end."""
    names = {stage.index: stage.name for stage in run.stages}
    known = list(matrix_of(run, metric).domains)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in known}
    for log in run.logs:
        for key, value in log.items():
            name = _domain(key, metric, log, names, known)
            if name is not None and isinstance(value, int | float):
                found.setdefault(name, []).append((log["step"], value))
    return found


def _domain(key: str, metric: str, log: dict[str, Any], names: dict[int, str], known: Sequence[str]) -> str | None:
    prefix = next((prefix for prefix in _PREFIXES if key.startswith(prefix)), None)
    if prefix is None or not key.endswith(metric):
        return None
    name = key.removeprefix(prefix).removesuffix(metric).removesuffix("_")
    if not name:  # a set without a name is the run's, or its stage's own
        name = "eval" if "eval" in known or not known else names.get(log.get("stage", 0), "eval")
    return name if name in known or not known else None
