"""Writes what ``hf-stages bench`` measured as text, from its plain data or a folder's ``bench.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_stages.reports.text import mebibytes

_DECODE = "decode"


def bench_table(found: Mapping[str, Any]) -> str:
    """Write the machine, a row for each way to run the model, and what could not be measured."""
    heads, rows = cells(found)
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    lines = [_line(row, widths) for row in (heads, *rows)]
    lines.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join([*head(found), "", *lines, "", *notes(found)])


def cells(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return heads and cells; a model card shows the same."""
    shapes = found["shapes"]
    heads = ["", "weights", *(_title(name, shape) for name, shape in shapes.items())]
    heads += ["decode, tokens/s"] if found["decoded"] else []
    rows = []
    for row in found["rows"]:
        times = row.get("times", {})
        row_cells = [_cell(times.get(name), _items(shape)) for name, shape in shapes.items()]
        row_cells += [_cell(times.get(_DECODE), 1)] if found["decoded"] else []
        rows.append([row["name"], mebibytes(row.get("weight_bytes")), *row_cells])
    return heads, rows


def _title(name: str, shape: Mapping[str, Any]) -> str:
    return f"{name}, ms" if shape["rows"] == 1 else f"{name}, {'tokens' if shape['tokens'] else 'images'}/s"


def _items(shape: Mapping[str, Any]) -> int | None:
    """Return the items of a batch, for its throughput; None for one row, where latency matters."""
    return None if shape["rows"] == 1 else shape["rows"] * (shape["tokens"] or 1)


def _cell(times: Mapping[str, Any] | None, items: int | None) -> str:
    """Write a time or a throughput: the best, the median, and the speedup.

    >>> _cell({"best": 0.02, "median": 0.025, "speedup": 3.0}, None), _cell(None, 1)
    ('20.0 (25.0) 3.00x', '-')
    >>> _cell({"best": 0.02, "median": 0.025}, 4096)
    '204,800 (163,840)'
    """
    if times is None or "failed" in times:
        return "-"
    best, median = (items / s if items else 1e3 * s for s in (times["best"], times["median"]))
    speedup = f" {times['speedup']:.2f}x" if "speedup" in times else ""
    return f"{_number(best)} ({_number(median)}){speedup}"


def _number(value: float) -> str:
    """Write a number with about three digits.

    >>> _number(0.512), _number(7.25), _number(240.4), _number(20480.0)
    ('0.512', '7.25', '240', '20,480')
    """
    places = next((places for places, least in ((0, 100), (1, 10), (2, 1)) if value >= least), 3)
    return f"{value:,.{places}f}"


def head(found: Mapping[str, Any]) -> list[str]:
    """Return lines that say what was measured, and on which machine."""
    machine = found["machine"]
    waits = "" if machine["wait_policy"] is None else f", OMP_WAIT_POLICY={machine['wait_policy']}"
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] != 1)} of {machine['cores']} cores{waits}"
    return [
        f"{found['folder']}: {found['model']}, {mebibytes(found['disk_bytes'])} of weights on disk",
        f"{machine['processor']}, {threads}; packed layers run {machine['kernel']}; torch {machine['torch']}",
    ]


def notes(found: Mapping[str, Any]) -> list[str]:
    """Return lines that say how to read the numbers, and why some are missing."""
    machine, counts = found["machine"], set()
    reasons: dict[str, list[str]] = {}
    for row in found["rows"]:
        if "absent" in row:
            reasons.setdefault(row["absent"], []).append(row["name"])
        for name, times in row.get("times", {}).items():
            if "failed" in times:
                reasons.setdefault(f"{name}: {times['failed']}", []).append(row["name"])
            else:
                counts.add(times["turns"])
    turns = "-".join(str(count) for count in sorted({min(counts), max(counts)})) if counts else "no"
    lines = [f"Best of {turns} turns (median), and how many times faster than fp32, which is the dequantized model."]
    if (machine["load"] or 0) > 0.5 * (machine["cores"] or 1):
        lines.append(
            f"The machine had other work (load {machine['load']} on {machine['cores']} cores): times are too long."
        )
    return [*lines, *(f"{'; '.join(names)}: {why}" for why, names in reasons.items())]


def _line(row: list[str], widths: list[int]) -> str:
    padded = [text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))]
    return "  ".join(padded).rstrip()
