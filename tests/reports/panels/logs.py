"""Logs of made-up runs: one that learns, one whose tokens collapse, and one whose recurrence is ignored."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from hf_stages.core.sealed_folders import seal_folder

DEPTHS = (1, 4, 8, 16, 32, 64)
STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def log(kind: str, depths: tuple[int, ...] = DEPTHS) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for step in STEPS:
        loss = 4.8 if kind == "collapsed" and step > 5 else 6 * step**-0.15
        correlation = {
            "good": 0.3 / step,
            "collapsed": 1 - 0.9 * math.exp(-step / 20),
            "ignored": max(0.05, 0.97 * math.exp(-max(step - 150, 0) / 80)),
        }[kind]
        found.append({"step": step, "loss": loss, "token_correlation": correlation, "learning_rate": 1e-3})
        if step >= 100:
            gains = [1 / (1 + 0.2 * place) if kind == "good" else 1.0 for place in range(len(depths))]
            at = {f"eval_ppl_at_{r}": math.exp(loss * gain) for r, gain in zip(depths, gains, strict=True)}
            found.append({"step": step, **at})
    return found


def plain_run(folder: Path, logs: list[dict[str, Any]]) -> Path:
    """What a plain Trainer leaves: the newest checkpoint holds the whole history."""
    for step, upto in ((100, [entry for entry in logs if entry["step"] <= 100]), (1000, logs)):
        place = folder / f"checkpoint-{step}"
        place.mkdir(parents=True)
        (place / "trainer_state.json").write_text(json.dumps({"log_history": upto}))
    return folder


def staged_run(folder: Path, logs: list[dict[str, Any]], ledger: list[dict[str, Any]], ends: tuple[int, ...]) -> Path:
    """What a run of ours leaves: finished stages that end at these steps, and a manifest."""
    stages = {}
    for index, end in enumerate(ends, start=1):
        place = folder / f"{index:02d}-part{index}"
        (place / "training_state").mkdir(parents=True)
        state = {"log_history": [entry for entry in logs if entry["step"] <= end]}
        (place / "training_state" / "trainer_state.json").write_text(json.dumps(state))
        summary = {"schema": 1, "index": index, "name": f"part{index}", "parents": [], "steps": 1, "tokens": 1}
        summary |= {"seconds": 1.0, "global_step": end, "ended_by": "until", "metrics": {}, "domains": {}}
        (place / "stage.json").write_text(json.dumps({**summary, "ledger": ledger}))
        seal_folder(place)
        stages[f"part{index}"] = {"status": "done", "folder": place.name}
    manifest = {"schema": 1, "status": "done", "stages": stages, "ledger": ledger}
    (folder / "run.json").write_text(json.dumps(manifest))
    return folder


def decision(step: int, kind: str, reason: str = "because", by: str = "") -> dict[str, Any]:
    return {"step": step, "stage": "part1", "kind": kind, "reason": reason, "by": by}
