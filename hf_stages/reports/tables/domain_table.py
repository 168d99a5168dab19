"""The stage x domain matrix as text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from hf_stages.reports.matrix import START, Matrix, matrix_of, mean_of, metrics_of
from hf_stages.reports.run_folder import ReadRun

_NO_BYTES = (
    "Bits per byte are not there: they need the processing_class of a language model with a vocabulary that spells "
    "its bytes out (byte-level, or SentencePiece with a fallback to bytes), or a column `bytes` in the evaluation set."
)
_TITLES = {"loss": "Loss per item", "bits_per_byte": "Bits per byte"}


def domain_table(run: ReadRun) -> str:
    """Write a table for each metric; below the losses, forgetting and transfer between stages."""
    parts = []
    for metric in metrics_of(run):
        matrix = matrix_of(run, metric)
        if matrix.values:
            parts.append(_table(matrix))
    if not parts:
        return _nothing_yet(run)
    transfers = _transfers(matrix_of(run, "loss"))
    if not matrix_of(run, "bits_per_byte").values:
        transfers.append(textwrap.fill(_NO_BYTES, 100))
    return "\n\n".join([*parts, *transfers])


def _nothing_yet(run: ReadRun) -> str:
    if any(key.startswith(("start_", "eval_")) for log in run.logs for key in log):
        return "No stage has ended yet: evaluation sets are compared after each one."
    return (
        "No evaluation sets were measured: give the trainer eval_dataset={name: ...} to see every domain after every "
        "stage."
    )


def _table(matrix: Matrix) -> str:
    lower = matrix.metric in _TITLES
    heads = ["after", *matrix.domains]
    rows = [[_row_name(matrix, row), *(_cell(matrix, row, d, lower) for d in matrix.domains)] for row in matrix.rows]
    rows = [row for row in rows if any(cell != "-" for cell in row[1:])]
    title = _TITLES.get(matrix.metric, matrix.metric)
    note = " (+: risen since its best; *: the stage that trains on it)" if lower else ""
    return f"{title}{note}\n{aligned([heads, *rows])}"


def _row_name(matrix: Matrix, row: str) -> str:
    return "(before training)" if row == START else f"{matrix.rows.index(row)} {row}"


def _cell(matrix: Matrix, row: str, domain: str, lower: bool) -> str:
    value = matrix.values.get((row, domain))
    if value is None:
        return "-"
    rise = matrix.forgotten(row, domain) if lower else 0.0
    mark = "*" if matrix.homes.get(domain) == row else ""
    return f"{value:.4g}{mark}" + (f" +{rise:.3g}" if rise else "")


def _transfers(matrix: Matrix) -> list[str]:
    heads = ["domain", "trained in", "backward", "forward"]
    rows, back, forth = [], [], []
    for domain in matrix.domains:
        back.append(matrix.backward(domain))
        forth.append(matrix.forward(domain))
        rows.append([domain, matrix.homes.get(domain, "-"), _signed(back[-1]), _signed(forth[-1])])
    if mean_of(back) is None and mean_of(forth) is None:
        return []
    rows.append(["mean", "", _signed(mean_of(back)), _signed(mean_of(forth))])
    title = "Transfer in loss (positive: better). Backward: by later stages; forward: by earlier ones, before its own"
    return [f"{title}\n{aligned([heads, *rows])}"]


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3g}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)
