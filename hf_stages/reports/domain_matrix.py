"""Gives the stage x domain matrix of a run as plain data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_stages.reports.matrix import matrix_of, mean_of, metrics_of
from hf_stages.reports.run_folder import read_run


def domain_matrix(out: str | Path) -> dict[str, Any]:
    """Return losses and task metrics by stage and domain, and forgetting and transfer of the loss and of bits per
    byte."""
    run = read_run(out)
    found: dict[str, Any] = {"status": run.status, "problems": list(run.problems), "metrics": {}}
    for metric in metrics_of(run):
        matrix = matrix_of(run, metric)
        if not matrix.values:
            continue
        values = {
            row: {d: matrix.values[row, d] for d in matrix.domains if (row, d) in matrix.values} for row in matrix.rows
        }
        found["metrics"][metric] = {"values": values}
        if metric not in ("loss", "bits_per_byte"):
            continue  # for other metrics it is not known whether more is better
        backward = {domain: matrix.backward(domain) for domain in matrix.domains}
        forward = {domain: matrix.forward(domain) for domain in matrix.domains}
        found["metrics"][metric] |= {
            "forgetting": {row: {d: matrix.forgotten(row, d) for d in values[row]} for row in matrix.rows},
            "homes": dict(matrix.homes),
            "backward": backward,
            "forward": forward,
            "mean_backward": mean_of(list(backward.values())),
            "mean_forward": mean_of(list(forward.values())),
        }
    return found
