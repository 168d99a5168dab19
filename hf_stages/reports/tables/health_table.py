"""Runs side by side, as text or data: where loss, correlation and perplexity ended, and what had to be decided."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from hf_stages.reports.panels.layout import check_comparable, choose_set
from hf_stages.reports.panels.run_curves import Points, RunCurves
from hf_stages.reports.tables.domain_table import aligned

_DECISIONS = ("alert", "skip", "cut_lr", "rollback")


def health_table(runs: Sequence[RunCurves], eval_set: str | None = None) -> str:
    """Write a row for each run; below it, the first decisions of each."""
    check_comparable(runs, eval_set)
    chosen = choose_set(runs) if eval_set is None else eval_set
    depths = sorted({d for run in runs for d in _perplexities(run, chosen)}, key=lambda depth: depth or 0)
    heads = ["run", "steps", "loss", "lowest", "correlation", "highest"]
    heads += ["perplexity" if depth is None else f"ppl at {depth}" for depth in depths]
    heads += ["alerts", "skips", "rate cuts", "rollbacks"]
    rows = []
    for run in runs:
        kinds = Counter(mark.kind for mark in run.marks)
        row = [run.name, f"{run.last_step:,.0f}", _last(run.loss), _extreme(run.loss, min)]
        row += [_last(run.correlation), _extreme(run.correlation, max)]
        row += [_last(_perplexities(run, chosen).get(depth, ())) for depth in depths]
        rows.append([*row, *(str(kinds[kind] or "-") for kind in _DECISIONS)])
    of_set = f"; perplexity on {chosen}" if chosen else ""
    parts = [f"Last values of each run{of_set}\n{aligned([heads, *rows])}"]
    parts += [decisions for run in runs if (decisions := _decisions(run))]
    return "\n\n".join(parts)


def health_dict(runs: Sequence[RunCurves], eval_set: str | None = None) -> dict[str, Any]:
    """Return what the table shows, and the points of all curves, as plain data. What is not finite is None."""
    check_comparable(runs, eval_set)
    chosen = choose_set(runs) if eval_set is None else eval_set
    return {
        "eval_set": chosen,
        "runs": [
            {
                "name": run.name,
                "loss": _plain(run.loss),
                "token_correlation": _plain(run.correlation),
                "perplexity": {
                    "all" if depth is None else str(depth): _plain(points)
                    for depth, points in _perplexities(run, chosen).items()
                },
                "decisions": [{"step": mark.step, "kind": mark.kind, "words": mark.words} for mark in run.marks],
            }
            for run in runs
        ],
    }


def _perplexities(run: RunCurves, chosen: str | None) -> dict[int | None, Points]:
    return dict((run.perplexity or {}).get(chosen or "") or {})


def _plain(points: Points) -> list[list[float | None]]:
    return [[x, y if math.isfinite(y) else None] for x, y in points]


def _last(points: Points) -> str:
    newest = [y for x, y in points if x == points[-1][0]]
    known = [y for y in newest if math.isfinite(y)]
    return f"{(known or newest)[-1]:.4g}" if points else "-"


def _extreme(points: Points, pick: Any) -> str:
    finite = [y for _, y in points if math.isfinite(y)]
    return f"{pick(finite):.4g}" if finite else "-"


def _decisions(run: RunCurves, most: int = 8) -> str:
    lines = [f"  step {mark.step:g}, {mark.words}" for mark in run.marks[:most]]
    if len(run.marks) > most:
        lines.append(f"  and {len(run.marks) - most} more: hf-stages report shows them all")
    return "\n".join([f"Decisions of {run.name}", *lines]) if lines else ""
