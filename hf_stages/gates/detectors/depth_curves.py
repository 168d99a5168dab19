"""Perplexity by depth of recurrence, as evaluations logged it, and what detectors that read it have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from hf_stages.core.depth_metrics import split_depth
from hf_stages.gates.base import History
from hf_stages.gates.detectors.base import Detector


@dataclass(frozen=True)
class DepthDetector(Detector):
    """Base of detectors that compare an evaluation set's perplexity at several depths."""

    evaluations: int = field(default=2, kw_only=True)
    """How many evaluations in a row must find so."""
    of: str | None = field(default=None, kw_only=True)
    """The evaluation set's name, where there are several."""
    cooldown: int = field(default=1000, kw_only=True)
    """After this many updates without an alert, ``then`` begins with its first action again."""
    compares_depths = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.evaluations < 1:
            raise ValueError(f"{type(self).__name__}: evaluations: expected at least 1, got {self.evaluations}")


def depth_curves(history: History, of: str | None, *, last: int) -> list[tuple[int, dict[int, float]]]:
    """Return (step, {depth: ln of the perplexity}) of the last evaluations at several depths, oldest first.

    >>> logs = [{"step": 10, "eval_ppl_at_1": 12.0, "eval_ppl_at_4": 11.0}, {"step": 10, "loss": 2.0}]
    >>> [(step, sorted(curve)) for step, curve in depth_curves(History(10, logs=logs), None, last=3)]
    [(10, [1, 4])]

    Args:
        history: What was logged.
        of: The evaluation set's name, where there are several; None reads the one that has no name.
        last: How many evaluations are wanted.
    """
    prefix = "eval_" if of is None else f"eval_{of}_"
    curves: list[tuple[int, dict[int, float]]] = []
    for log in reversed(history.logs):
        if log["step"] <= history.since or len(curves) == last:
            break
        if len(curve := _curve(log, prefix)) > 1:
            curves.append((log["step"], curve))
    return curves[::-1]


def _curve(log: Mapping[str, float], prefix: str) -> dict[int, float]:
    found = {}
    for key, value in log.items():
        measured = split_depth(key) if key.startswith(prefix) and "_at_" in key else None
        if measured is None:
            continue
        what, depth = measured
        if what == f"{prefix}loss":
            found[depth] = value
        elif what == f"{prefix}ppl" and value > 0:
            found[depth] = math.log(value)
    return {depth: found[depth] for depth in sorted(found)}
