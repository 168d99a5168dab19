"""Perplexity by depth of recurrence, as evaluations logged it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from hf_stages.gates.base import History

_NAMED = re.compile(r"(ppl|loss)_at_(\d+)")


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
        named = _NAMED.fullmatch(key.removeprefix(prefix)) if key.startswith(prefix) else None
        if named is not None and (named[1] == "loss" or value > 0):
            found[int(named[2])] = value if named[1] == "loss" else math.log(value)
    return {depth: found[depth] for depth in sorted(found)}
