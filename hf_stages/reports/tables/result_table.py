"""Writes what every stage of a run did, from its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_stages.core.depth_metrics import split_depth
from hf_stages.reports.run_folder import ReadRun, ReadStage, read_run
from hf_stages.reports.text import bits, count, duration, mebibytes

_HEADS = ("stage", "steps", "tokens", "time", "ended by", "before -> after", "bits", "packed", "folder")
_SIZES = (_HEADS.index("bits"), _HEADS.index("packed"))
_RIGHT = (1, 2, 3, *_SIZES)
_SHOWN_METRICS = 2
_QUIET = ("runtime", "per_second", "_items")
_PLACES = ("epoch", "step", "stage", "items")


def result_table(out: str | Path) -> str:
    """Write a row for each stage, from ``run.json`` and each ``stage.json``.

    Unfinished and damaged stages are marked.
    """
    run = read_run(out)
    return "\n".join([stages_table(run), *(f"! {problem}" for problem in run.problems)])


def stages_table(run: ReadRun) -> str:
    """Write a row for each stage, and the run's status."""
    (heads, *rows), right = stage_cells(run)
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    lines = [_line(row, widths, right) for row in (heads, *rows)]
    lines.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join([*lines, run_status(run)])


def run_status(run: ReadRun) -> str:
    return f"The run is {run.status}."


def stage_cells(run: ReadRun) -> tuple[list[list[str]], set[int]]:
    """Return the table's heads and rows, and the columns of numbers. Sizes are shown only where a stage quantizes."""
    rows, quantized = [], False
    for stage in run.stages:
        if stage.summary is None:
            rows.append(_open_row(stage, run.status))
            continue
        quantized |= bool((stage.summary.get("size") or {}).get("quantized"))
        rows.append(_row(stage.index, stage.name, stage.folder, stage.summary))
    shown = [i for i in range(len(_HEADS)) if quantized or i not in _SIZES]
    return [[row[i] for i in shown] for row in (_HEADS, *rows)], {shown.index(i) for i in _RIGHT if i in shown}


def _open_row(stage: ReadStage, run: str) -> list[str]:
    """Return the row of an unfinished stage: how far its checkpoint is, or that there is none."""
    name = f"{stage.index} {stage.name}"
    saved, of = stage.unfinished, f" of {count(stage.planned)}" if stage.planned else ""
    if saved is not None:
        far = [f"{count(saved.steps)}{of}", count(saved.tokens or None), duration(saved.seconds)]
        return [name, *far, "half done", "", "", "", str(saved.checkpoint)]
    cut = stage.status == "running" and run != "running"
    return [name, f"0{of}" if cut else "-", "-", "-", "cut, not saved" if cut else stage.status, "", "", "", ""]


def _row(number: int, name: str, folder: Path, stage: Mapping[str, Any]) -> list[str]:
    size = stage.get("size") or {}
    return [
        f"{number} {name}",
        count(stage.get("steps")),
        count(stage.get("tokens") or None),
        duration(stage.get("seconds")),
        str(stage.get("ended_by") or "-") + (", went back" if _went_back(stage) else ""),
        _metrics_change(stage),
        bits(size.get("bits_per_weight")),
        mebibytes(size.get("bytes")),
        str(folder),
    ]


def _went_back(stage: Mapping[str, Any]) -> bool:
    """Return whether a rollback gave the stage an earlier model at its end."""
    own = [e for e in stage.get("ledger") or () if e.get("stage") == stage.get("name") and e.get("kind") == "rollback"]
    return any(entry.get("step") == stage.get("global_step") for entry in own)


def _metrics_change(stage: Mapping[str, Any]) -> str:
    """Write metrics at the stage's first step and at its end, the loss after the others."""
    boundary = stage.get("boundary") or {}
    before = _without_prefixes(boundary.get("start") or boundary.get("before") or {})
    after = _without_prefixes(stage.get("metrics") or {})
    names = [n for n in after if not n.endswith(_QUIET) and not n.startswith("train_") and n not in _PLACES]
    names = [n for n in names if split_depth(n) is None]
    names.sort(key=lambda n: n == "loss" or n.endswith("_loss"))
    pieces = []
    for name in names[:_SHOWN_METRICS]:
        start = f"{before[name]:.4g} -> " if name in before else ""
        pieces.append(f"{name} {start}{after[name]:.4g}")
    return ", ".join(pieces) or "-"


def _without_prefixes(metrics: Mapping[str, Any]) -> dict[str, float]:
    numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
    return {key.removeprefix("eval_").removeprefix("start_"): value for key, value in numbers.items()}


def _line(row: Any, widths: list[int], right: set[int]) -> str:
    cells = [
        text.rjust(w) if i in right else text.ljust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()
