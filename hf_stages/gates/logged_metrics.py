"""Refuses gates that read a number which nothing logs: they could never fire."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from hf_stages.core.registry import Where, find_class, part_names
from hf_stages.gates.detectors.base import Detector


def check_logged(gate: Any, monitors: Sequence[Any], args: Any, *, here: str, add: str) -> None:
    """Refuse a gate whose metric is logged by none of the monitors, and name the monitor that logs it.

    Metrics that no monitor of ours logs are left alone: they may come from evaluations or from a callback.

    Args:
        gate: The gate.
        monitors: The monitors that are at work where the gate is asked.
        args: The TrainingArguments that hold there.
        here: How the error calls what the monitors belong to, such as ``stage``.
        add: How monitors are added there, with ``{}`` for them.
    """
    metric = gate.metric_read
    if metric is None or gate.on != "log":
        return
    strategy = str(getattr(args.logging_strategy, "value", args.logging_strategy))
    if strategy == "no" and isinstance(gate, Detector) and not metric.startswith("eval_"):
        raise ValueError(
            f'it reads {metric} from the training log, but logging_strategy is "no"; set logging_strategy="steps"'
        )
    names = [name for name in part_names("monitors") if _logs(find_class(name, ["monitors"], Where()), metric)]
    if not names or any(_logs(monitor, metric) or not getattr(monitor, "logs", ()) for monitor in monitors):
        return
    suggested = add.format(" or ".join(f"{name}()" for name in names))
    raise ValueError(f"it reads {metric}, which no monitor of this {here} logs; add {suggested}")


def _logs(monitor: Any, metric: str) -> bool:
    return any(fnmatchcase(metric, pattern) for pattern in getattr(monitor, "logs", ()))
