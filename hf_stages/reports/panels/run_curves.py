"""Takes from a run's log what the three panels show: loss, hidden-state correlation, validation perplexity."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Points = tuple[tuple[float, float], ...]
"""Steps and values, in the order of the steps. Values may be NaN or infinite."""

CORRELATION = "token_correlation"
_LAYER = re.compile(rf"^{CORRELATION}_layer_(\d+)$")
_EVALUATION = re.compile(r"^(?:eval|start)_(?:(?P<set>.+)_)?(?P<what>ppl|perplexity|loss)(?:_at_(?P<depth>\d+))?$")
_MARKED = ("alert", "incident", "skip", "cut_lr", "rollback", "replay", "stop")
"""The ledger's kinds that the panels mark."""


@dataclass(frozen=True)
class Mark:
    """A decision that the panels mark, or a stage's beginning."""

    step: float
    kind: str
    words: str


@dataclass(frozen=True)
class RunCurves:
    """What one run logged of the three panels. A panel without points is empty."""

    name: str
    loss: Points = ()
    """A step at which Trainer's filter hid NaN has two: the loss that was logged, and NaN."""
    correlation: Points = ()
    perplexity: Mapping[str, Mapping[int | None, Points]] | None = None
    """For each evaluation set ("" is the one without a name) and each recurrence (None: a model without)."""
    marks: tuple[Mark, ...] = ()
    stages: tuple[Mark, ...] = ()
    """Where each stage begins."""

    @property
    def sets(self) -> list[str]:
        return sorted(self.perplexity or {})

    @property
    def last_step(self) -> float:
        series = [self.loss, self.correlation, *(p for s in (self.perplexity or {}).values() for p in s.values())]
        return max((points[-1][0] for points in series if points), default=0)


def curves_of(
    name: str,
    logs: Iterable[Mapping[str, Any]],
    ledger: Iterable[Mapping[str, Any]] = (),
    stages: Sequence[Mark] = (),
) -> RunCurves:
    """Take the curves from a log history and a ledger.

    Args:
        name: What the run is called in the pictures.
        logs: Trainer's log history.
        ledger: The run's decisions; a plain Trainer has none.
        stages: Where each stage begins.
    """
    logs = [log for log in logs if math.isfinite(_number(log.get("step"), math.nan))]
    return RunCurves(name, _losses(logs), _correlations(logs), _perplexities(logs), _marks(ledger), tuple(stages))


def _marks(ledger: Iterable[Mapping[str, Any]]) -> tuple[Mark, ...]:
    """Return what is marked. Rows written down because of another decision are told with it, and have no mark."""
    entries = [entry for entry in ledger if entry["kind"] in _MARKED]
    rows = {(e["step"], e.get("by")): e["reason"] for e in entries if e["kind"] == "incident"}
    marks = []
    for entry in sorted(entries, key=lambda entry: entry["kind"] == "incident"):
        place = (entry["step"], entry.get("by"))
        if entry["kind"] != "incident":
            marks.append(Mark(entry["step"], entry["kind"], "; ".join([_words(entry), *_take(rows, place)])))
        elif _take(rows, place):
            marks.append(Mark(entry["step"], "incident", _words(entry)))
    return tuple(sorted(marks, key=lambda mark: mark.step))


def _take(held: dict[Any, str], key: Any) -> list[str]:
    return [held.pop(key)] if key in held else []


def _losses(logs: Sequence[Mapping[str, Any]]) -> Points:
    """Return the training loss, and beside it the raw loss where that is not finite: Trainer's filter hides NaN."""
    found = []
    for log in logs:
        loss, raw = (_number(log.get(key)) for key in ("loss", "raw_loss"))
        hides = raw is not None and not math.isfinite(raw)
        if loss is not None and not (hides and (loss == 0 or not math.isfinite(loss))):  # 0: the filter had no others
            found.append((log["step"], loss))
        if raw is not None and (hides or loss is None):
            found.append((log["step"], raw))
    return _in_order(found)


def _correlations(logs: Sequence[Mapping[str, Any]]) -> Points:
    """Return the correlation of the last block's state, or else of the deepest layer that was watched."""
    keys = {key for log in logs for key in log}
    layers = sorted((int(match[1]), key) for key in keys if (match := _LAYER.match(key)))
    key = CORRELATION if CORRELATION in keys or not layers else layers[-1][1]
    return _in_order((log["step"], value) for log in logs if (value := _number(log.get(key))) is not None)


def _perplexities(logs: Sequence[Mapping[str, Any]]) -> dict[str, dict[int | None, Points]]:
    """Return perplexities as logged, or else the exponential of the evaluation's loss.

    A set that is evaluated at several recurrences is shown at these alone.
    """
    found: dict[str, dict[int | None, dict[str, list[tuple[float, float]]]]] = {}
    for log in logs:
        for key, logged in log.items():
            match, value = _EVALUATION.match(key), _number(logged)
            if match is None or value is None:
                continue
            depth = None if match["depth"] is None else int(match["depth"])
            logged_as = "loss" if match["what"] == "loss" else "ppl"
            points = found.setdefault(match["set"] or "", {}).setdefault(depth, {}).setdefault(logged_as, [])
            points.append((log["step"], _exp(value) if logged_as == "loss" else value))
    kept: dict[str, dict[int | None, Points]] = {}
    for name, depths in found.items():
        shown: list[int | None] = [*sorted(depth for depth in depths if depth is not None)]
        kept[name] = {depth: _in_order(depths[depth].get("ppl") or depths[depth]["loss"]) for depth in shown or [None]}
    return kept


def _number(value: Any, otherwise: Any = None) -> Any:
    """Return a logged value as a float; an integer that none can hold is infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return otherwise
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf if value == value else math.nan


def _in_order(points: Iterable[tuple[float, float]]) -> Points:
    return tuple(sorted(points, key=lambda point: point[0]))


def _words(entry: Mapping[str, Any]) -> str:
    return f"{entry['kind']}: {entry['reason']}" + (f" [{entry['by']}]" if entry.get("by") else "")
