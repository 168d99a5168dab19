"""Reads the curves of a run of ours or of a plain Trainer, from whatever folder or file holds its log."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_stages.core.sealed_folders import RUN_FILE, STAGE_FILE, TRAINING_STATE, checkpoints
from hf_stages.core.short_values import describe_value
from hf_stages.reports.panels.run_curves import Mark, RunCurves, curves_of
from hf_stages.reports.run_folder import ReadRun, read_run

_STATE = "trainer_state.json"
_DETECTORS = "DetectorCallback"
"""Under this name a plain Trainer's state holds what detectors decided."""


def read_all_curves(given: Sequence[str | Path]) -> list[RunCurves]:
    """Read several runs. Each is a path, or ``name=path``; without a name, the folder's tells them apart."""
    named = [_split(str(text)) for text in given]
    paths = [path for _, path in named]
    names = [name or short for (name, _), short in zip(named, _short_names(paths), strict=True)]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two runs are called {twice!r}: name them apart, such as first={paths[names.index(twice)]}")
    return [read_curves(path, name) for name, path in zip(names, paths, strict=True)]


def read_curves(path: str | Path, name: str | None = None) -> RunCurves:
    """Read a run.

    Args:
        path: The ``output_dir`` of a run of ours or of a plain Trainer, a stage folder, a checkpoint, or a
            ``trainer_state.json``.
        name: What it is called in the pictures.
    """
    path = Path(path)
    name = name or path.resolve().name
    if not path.exists():
        raise ValueError(f"{path}: there is no such file or folder; expected a run's output_dir or a {_STATE}")
    if path.is_dir() and ((path / RUN_FILE).is_file() or any(path.glob(f"*/{STAGE_FILE}"))):
        found = curves_of_run(read_run(path), name)
    else:
        found = curves_of(name, *_plain(path))
    if not (found.loss or found.correlation or found.perplexity):
        raise ValueError(
            f"{path}: its log holds no loss, no token_correlation and no evaluation; has the run logged anything yet?"
        )
    return found


def curves_of_run(run: ReadRun, name: str) -> RunCurves:
    """Take the curves of a run of ours."""
    return curves_of(name, run.logs, run.ledger, stages_of(run))


def stages_of(run: ReadRun) -> list[Mark]:
    """Return where each stage begins: it is known for finished stages and the one after them."""
    found, step = [], 0
    for stage in run.stages:
        if stage.status in ("waiting", "damaged"):
            continue
        found.append(Mark(step, "stage", f"{stage.index} {stage.name}"))
        step = (stage.summary or {}).get("global_step", step)
    return found


def _plain(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return log and ledger from where a plain Trainer, a stage folder or a checkpoint keeps them."""
    if path.is_file():
        places = [path]
    else:
        places = [path / _STATE, path / TRAINING_STATE / _STATE, *(p / _STATE for _, p in checkpoints(path))]
    places = [place for place in places if place.is_file()]
    if not places:
        raise ValueError(
            f"{path}: expected a run of hf_stages ({RUN_FILE}) or of a plain Trainer ({_STATE}, there or in a "
            "checkpoint-N folder), got neither. A plain Trainer writes it at checkpoints and by trainer.save_state()"
        )
    logs, ledger = max(map(_read, places), key=lambda found: found[0][-1].get("step", -1) if found[0] else -1)
    stage = path / STAGE_FILE if path.is_dir() else None
    if stage and stage.is_file():
        ledger = json.loads(stage.read_text(encoding="utf-8")).get("ledger", [])
    return logs, ledger


def _read(place: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Read a Trainer's log, and the decisions of its DetectorCallback if it had one."""
    try:
        state = json.loads(place.read_text(encoding="utf-8"))
        held = (state.get("stateful_callbacks") or {}).get(_DETECTORS) or {}
        held = held[0] if isinstance(held, list) else held
        logs, entries = state["log_history"], held.get("attributes", {}).get("entries", [])
        if not isinstance(logs, list) or not all(isinstance(log, dict) for log in logs):
            raise ValueError(f"log_history: expected a list of what was logged, got {describe_value(logs)}")
        return logs, entries
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{place}: expected the state of a Trainer with its log_history, got {error!r}") from error


def _split(text: str) -> tuple[str | None, Path]:
    """Split ``name=path``; a path that exists is not split."""
    name, mark, rest = text.partition("=")
    return (name, Path(rest)) if mark and name and not Path(text).exists() else (None, Path(text))


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that differ; a file stands for its folder.

    >>> _short_names([Path("/a/good/out"), Path("/a/bad/out"), Path("/a/bad/checkpoint-9/trainer_state.json")])
    ['good/out', 'bad/out', 'checkpoint-9']
    """
    folders = [path.absolute().parent if path.name == _STATE else path.resolve() for path in paths]
    names = []
    for folder in folders:
        others = [other.parts for other in folders if other != folder]
        length = 1
        while length < len(folder.parts) and any(o[-length:] == folder.parts[-length:] for o in others):
            length += 1
        names.append("/".join(folder.parts[-length:]))
    return names
