"""Refuses gates that read a number of a monitor which the stage does not have: they could never fire."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from hf_stages.core.registry import Where, find_class, part_names
from hf_stages.core.stage import Stage
from hf_stages.gates.detectors.base import Detector


def check_logged(stage: Stage, gate: Any, args: Any) -> None:
    """Refuse a gate whose metric is logged by none of the stage's monitors, and name the monitor that logs it.

    Metrics that no monitor of ours logs are left alone: they may come from evaluations or from a callback.

    Args:
        stage: The stage that the gate belongs to.
        gate: The gate.
        args: The stage's TrainingArguments.
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
    if not names or any(_logs(monitor, metric) or not getattr(monitor, "logs", ()) for monitor in stage.monitors):
        return
    raise ValueError(
        f"it reads {metric}, which no monitor of this stage logs; add monitors=[{' or '.join(f'{n}()' for n in names)}]"
    )


def _logs(monitor: Any, metric: str) -> bool:
    return any(fnmatchcase(metric, pattern) for pattern in getattr(monitor, "logs", ()))
