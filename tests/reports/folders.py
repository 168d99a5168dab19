"""Run folders made by hand: what reports read, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

from hf_stages.core.sealed_folders import seal_folder


def stage(out: Path, index: int, name: str, domains: dict, *, parent: str | None = None, **more) -> Path:
    """A finished stage with these losses by domain."""
    folder = out / f"{index:02d}-{name}"
    (folder / "training_state").mkdir(parents=True)
    logs = [{"step": 10 * index, "stage": index, **{f"eval_{d}_loss": v["loss"] for d, v in domains.items()}}]
    logs += [{"step": 10 * index, "stage": index, "learning_rate": 1e-3, "loss": 1.0}]
    history = [{"step": 0, "stage": 1, "start_prose_loss": 4.0}, *logs]
    (folder / "training_state" / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    summary = {
        "schema": 1,
        "index": index,
        "name": name,
        "parents": [{"name": parent}] if parent else [],
        "steps": 10,
        "tokens": 100,
        "seconds": 1.0,
        "global_step": 10 * index,
        "ended_by": "until",
        "metrics": {},
        "domains": domains,
        "trains_on": [name],
        "ledger": [],
        **more,
    }
    (folder / "stage.json").write_text(json.dumps(summary))
    seal_folder(folder)
    return folder


def manifest(out: Path, names: list[str], status: str = "done", ledger: tuple = (), **states: str) -> None:
    stages = {
        name: {"status": states.get(name, "done"), "folder": f"{i:02d}-{name}"} for i, name in enumerate(names, start=1)
    }
    data = {"schema": 1, "status": status, "stages": stages, "ledger": list(ledger)}
    (out / "run.json").write_text(json.dumps(data))


def losses(**values: float) -> dict[str, dict[str, float]]:
    return {
        name: {"loss": value, "bits_per_byte": value / 2, "items": 5, "accuracy": 0.5} for name, value in values.items()
    }
