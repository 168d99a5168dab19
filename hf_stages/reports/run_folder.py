"""Reads a run from its folders, without data, model or weights.

A damaged stage is reported, and its numbers not used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hf_stages.core.sealed_folders import (
    RUN_FILE,
    SEAL,
    STAGE_FILE,
    STATE_FILE,
    TRAINING_STATE,
    NewerSchema,
    checkpoints,
    checksum_file,
    read_json,
)

_FOLDER = re.compile(r"^(\d+)-(.+)$")
_STATE = "trainer_state.json"


@dataclass(frozen=True)
class Unfinished:
    """How far a stage is that was cut or still runs."""

    checkpoint: Path
    steps: int
    tokens: float
    seconds: float


@dataclass(frozen=True)
class ReadStage:
    """One stage. ``summary`` is None where it is not done or damaged; ``problem`` says what is damaged."""

    index: int
    name: str
    folder: Path
    status: str
    summary: dict[str, Any] | None = None
    problem: str = ""
    planned: int | None = None
    """The planned updates, from the run's manifest."""
    unfinished: Unfinished | None = None
    """How far an unfinished stage is, from its newest checkpoint."""

    @property
    def parent(self) -> str | None:
        parents = (self.summary or {}).get("parents") or []
        return parents[0]["name"] if parents else None


@dataclass(frozen=True)
class ReadRun:
    """Everything that reports need of a run's folder."""

    out: Path
    status: str
    stages: tuple[ReadStage, ...]
    ledger: tuple[dict[str, Any], ...]
    logs: tuple[dict[str, Any], ...]
    """Trainer's log history, from the stage or checkpoint that holds most of it."""
    problems: tuple[str, ...]

    @property
    def done(self) -> list[ReadStage]:
        return [stage for stage in self.stages if stage.summary is not None]


def read_run(out: str | Path) -> ReadRun:
    out = Path(out)
    problems: list[str] = []
    try:
        manifest = read_json(out / RUN_FILE, "a run's folder")
    except NewerSchema:
        raise
    except ValueError as error:
        if not any(out.glob(f"*/{STAGE_FILE}")):
            raise
        problems.append(f"{error}; the stages are those whose folders are there")
        manifest = {"status": "of unknown state", "stages": {}, "ledger": []}
    declared = {e["folder"]: (name, e["status"], e.get("steps")) for name, e in manifest["stages"].items()}
    found = sorted({*declared, *(p.parent.name for p in out.glob(f"*/{STAGE_FILE}") if _FOLDER.match(p.parent.name))})
    stages = []
    for folder in found:
        match = _FOLDER.match(folder)
        if match is None:
            continue
        name, status, steps = declared.get(folder, (match[2], "done", None))
        stages.append(replace(_read_stage(out / folder, int(match[1]), name, status), planned=steps))
    unfinished = _unfinished(out)
    stages = [
        replace(stage, unfinished=unfinished.get(stage.name) if stage.summary is None else None) for stage in stages
    ]
    problems += [f"{stage.folder}: {stage.problem}" for stage in stages if stage.problem]
    done = [stage.summary for stage in stages if stage.summary is not None]
    last = max(done, key=lambda summary: summary.get("global_step", 0), default={})
    ledger = manifest.get("ledger") or last.get("ledger", [])
    return ReadRun(out, manifest["status"], tuple(stages), tuple(ledger), tuple(_logs(out, stages)), tuple(problems))


def _read_stage(folder: Path, index: int, name: str, status: str) -> ReadStage:
    if not (folder / STAGE_FILE).is_file():
        lost = f"it is said to be done, but there is no {STAGE_FILE}" if status == "done" else ""
        return ReadStage(index, name, folder, "damaged" if lost else status, problem=lost)
    try:
        summary = read_json(folder / STAGE_FILE, "a stage folder")
        problem = _problem(folder)
    except ValueError as error:
        return ReadStage(index, name, folder, "damaged", problem=str(error))
    if problem is not None:
        return ReadStage(index, name, folder, "damaged", problem=problem)
    return ReadStage(index, name, folder, "done", summary)


def _unfinished(out: Path) -> dict[str, Unfinished]:
    """Return for each stage the newest checkpoint that a resumed run would start from."""
    found: dict[str, Unfinished] = {}
    for _, folder in checkpoints(out):
        try:
            state = read_json(folder / STATE_FILE, "a stage state")
            one = Unfinished(folder, int(state["steps"]), float(state["tokens"]), float(state["seconds"]))
        except (ValueError, KeyError, TypeError):
            continue  # Trainer's own, or half-written by a process that died
        if state.get("resumable", True) and (folder / SEAL).is_file():
            found.setdefault(state["stage"], one)
    return found


def _problem(folder: Path) -> str | None:
    """Return what is wrong with a folder: a file is missing or has another size, or JSON was changed.

    Weights are not read.
    """
    if not (folder / SEAL).is_file():
        return "it was not written to its end (no seal)"
    for name, (size, digest) in read_json(folder / SEAL, "a seal")["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, expected {size}"
        if path.suffix == ".json" and checksum_file(path) != digest:
            return f"{name} was changed after it was written (its checksum differs)"
    return None


def _logs(out: Path, stages: Iterable[ReadStage]) -> list[dict[str, Any]]:
    """Return the longest history: every stage and checkpoint holds the whole run before it."""
    places = [stage.folder / TRAINING_STATE / _STATE for stage in stages if stage.summary is not None]
    places += [folder / _STATE for _, folder in checkpoints(out)]
    longest: list[dict[str, Any]] = []
    for place in places:
        try:
            logs = _history(place)
        except (ValueError, OSError, KeyError, TypeError):
            continue  # half-written by a process that died
        if (_end(logs), len(logs)) > (_end(longest), len(longest)):
            longest = logs
    return longest


def _history(path: Path) -> list[dict[str, Any]]:
    """Read the log history of a ``trainer_state.json``."""
    return json.loads(path.read_text(encoding="utf-8"))["log_history"]


def _end(logs: list[dict[str, Any]]) -> int:
    return logs[-1]["step"] if logs else -1
