"""What was measured at several depths of a recurrent model, a row for each set and a column for each depth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_stages.core.depth_metrics import MEASURES, split_depth
from hf_stages.reports.matrix import START
from hf_stages.reports.run_folder import ReadRun
from hf_stages.reports.tables.domain_table import aligned

_TITLES = {"ppl": "Perplexity", "bits_per_byte": "Bits per byte", "loss": "Loss per item"}


def depth_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Return a table's heads and rows of all metrics that name a depth; nothing where none does.

    >>> depth_rows({"eval_ppl_at_1": 9.25, "eval_ppl_at_8": 6.5, "eval_loss": 1.9})
    [['metric', '1', '8'], ['eval_ppl', '9.25', '6.5']]
    """
    found: dict[str, dict[int, float]] = {}
    for name, value in metrics.items():
        parts = split_depth(name)
        if parts is not None and isinstance(value, int | float):
            found.setdefault(parts[0], {})[parts[1]] = value
    depths = sorted({depth for values in found.values() for depth in values})
    rows = [[name, *(_cell(values.get(depth)) for depth in depths)] for name, values in sorted(found.items())]
    return [["metric", *map(str, depths)], *rows] if rows else []


def depth_table(run: ReadRun) -> str:
    """Write a table for each measure: a row for each stage and evaluation set; empty where no set has depths.

    Where there are perplexities, losses are left out, since they say the same.
    """
    tables = {what: _rows(run, what) for what in reversed(MEASURES)}
    if tables["ppl"]:
        tables["loss"] = []
    return "\n\n".join(
        f"{_TITLES[what]} by depth (cycles of the recurrent part)\n{aligned(rows)}"
        for what, rows in tables.items()
        if rows
    )


def _rows(run: ReadRun, what: str) -> list[list[str]]:
    found: dict[tuple[str, str], dict[int, float]] = {}
    for row, domains in _measured(run):
        for domain, metrics in domains.items():
            for name, value in metrics.items():
                parts = split_depth(name)
                if parts is not None and parts[0] == what and isinstance(value, int | float):
                    found.setdefault((row, domain), {})[parts[1]] = value
    depths = sorted({depth for values in found.values() for depth in values})
    rows = [[row, domain, *(_cell(values.get(d)) for d in depths)] for (row, domain), values in found.items()]
    return [["after", "set", *map(str, depths)], *rows] if rows else []


def _measured(run: ReadRun) -> list[tuple[str, Mapping[str, Any]]]:
    """List what each stage ended with by evaluation set; before it, what the first one began with."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    for place, stage in enumerate(run.done):
        summary = stage.summary or {}
        if not place and summary.get("domains_start"):
            found.append((f"({START})", summary["domains_start"]))
        found.append((f"{stage.index} {stage.name}", summary.get("domains") or {}))
    return found


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
