"""Tells from a run's folder when it ran, with which versions, model and settings."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from hf_stages.core.sealed_folders import STAGE_FILE
from hf_stages.reports.run_folder import ReadRun
from hf_stages.reports.text import count, rate

_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
_HEADS = (
    "stage",
    "until",
    "learns",
    "becomes",
    "learning rate",
    "schedule",
    "batch x accumulation",
    "optimizer",
    "seed",
)


def run_facts(run: ReadRun) -> list[tuple[str, str]]:
    """Return pairs (what, words), as far as a finished stage has them."""
    if not run.done:
        return []
    last = run.done[-1]
    summary, written = last.summary or {}, (last.folder / STAGE_FILE).stat().st_mtime
    found = [("last stage written", f"{datetime.fromtimestamp(written, UTC):%Y-%m-%d %H:%M} UTC")]
    if versions := summary.get("versions"):
        found.append(("versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    if model := _model(summary):
        found.append(("model", model))
    return found


def settings_of(run: ReadRun) -> list[list[str]]:
    """Return the table's heads, and a row for each finished stage."""
    rows = [_settings(stage.index, stage.name, stage.summary or {}) for stage in run.done]
    shown = [i for i in range(len(_HEADS)) if any(row[i] for row in rows)]
    return [[row[i] for i in shown] for row in (_HEADS, *rows)] if len(shown) > 1 else []


def _model(summary: Mapping[str, Any]) -> str:
    base, size = summary.get("base") or {}, summary.get("size") or {}
    config = base.get("config") or {}
    name = str(base.get("class", "")).split(":")[-1]
    where = f" from {config['_name_or_path']}" if config.get("_name_or_path") else ""
    weights = [f"{count(size['weights'])} weights"] if size.get("weights") else []
    sizes = [f"{key} {config[key]:,}" for key in _SIZES if isinstance(config.get(key), int)]
    return ", ".join([name + where, *weights, *sizes]) if name else ""


def _settings(index: int, name: str, summary: Mapping[str, Any]) -> list[str]:
    stage, args = summary.get("stage") or {}, (summary.get("declared") or {}).get("args") or {}
    schedule = _calls(stage.get("schedule")) or str(args.get("lr_scheduler_type", ""))
    batch = args.get("per_device_train_batch_size")
    return [
        f"{index} {name}",
        str(stage.get("until", "")),
        _calls(stage.get("loss"), " + ") or ("the model's own loss" if stage else ""),
        _calls(stage.get("transforms")),
        f"{rate(summary['lr_peak'])} -> {rate(summary['lr_end'])}" if "lr_peak" in summary else "",
        schedule,
        f"{batch} x {args.get('gradient_accumulation_steps', 1)}" if batch else "",
        str(args.get("optim", "")),
        str(args.get("seed", "")),
    ]


def _calls(value: Any, between: str = ", ") -> str:
    """Write plain data of parts as their calls.

    >>> _calls([{"use": "TaskLoss"}, {"use": "LogitKL", "temperature": 2.0, "weight": 0.5}], " + ")
    'TaskLoss + LogitKL(temperature=2.0, weight=0.5)'
    """
    if isinstance(value, Mapping):
        rest = {key: item for key, item in value.items() if key != "use"}
        if "use" in value:
            inner = ", ".join(f"{key}={_calls(item)}" for key, item in rest.items())
            return f"{value['use']}({inner})" if inner else str(value["use"])
        return between.join(f"{key}: {_calls(item)}" for key, item in rest.items())
    if isinstance(value, list | tuple):
        return between.join(_calls(item) for item in value)
    return "" if value is None else str(value)
