"""A boundary on disk: a complete model, ``stage.json``, and ``training_state/``."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.trainer_callback import TrainerState

from hf_stages.core.parts import part_to_dict
from hf_stages.core.sealed_folders import (
    CARD,
    SCHEMA,
    SEAL,
    STAGE_FILE,
    TRAINING_STATE,
    checksum_file,
    read_json,
    write_json,
    write_sealed_folder,
)
from hf_stages.core.version import __version__
from hf_stages.layers.bits import stored_size_or_none
from hf_stages.models import optimizer_moments as moments_file
from hf_stages.models.structure import save_weights
from hf_stages.planning.domains import by_domain, domains_of, plain_name, trained_on
from hf_stages.planning.plan import PlannedStage
from hf_stages.recipes.files import to_dict
from hf_stages.reports.cards.model_card import began_with, stage_card
from hf_stages.training.progress_bar import without_bars
from hf_stages.training.stage_rates import group_rates
from hf_stages.training.stage_run import StageRun
from hf_stages.training.trainer_counters import remembered

_TIMED = ("_runtime", "_per_second", "train_runtime", "items")


@dataclass(frozen=True)
class Boundary:
    """What a stage left behind."""

    summary: dict[str, Any]
    state: TrainerState


def read_boundary(folder: str | Path) -> Boundary:
    folder = Path(folder)
    summary = read_json(folder / STAGE_FILE, "a stage folder of hf_stages")
    state = TrainerState.load_from_json(str(folder / TRAINING_STATE / "trainer_state.json"))
    return Boundary(summary, state)


def write_boundary(
    runner: Any, planned: PlannedStage, run: StageRun, metrics: dict, change: Any, moments: moments_file.Moments
) -> dict[str, Any]:
    """Write the folder whole or not at all. Collective: sharded weights are gathered from every rank."""
    trainer = runner.trainer
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    state_dict = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None
    summary = _summary(runner, planned, run, metrics, change)
    size = stored_size_or_none(model)
    summary["size"] = None if size is None else size.to_dict(trainer.blueprint.weights)
    if trainer.args.should_save:
        with write_sealed_folder(runner.out / planned.folder) as folder:
            with without_bars():
                save_weights(model, folder, state_dict=state_dict)
            if trainer.processing_class is not None:
                trainer.processing_class.save_pretrained(folder)
            _write_training_state(folder / TRAINING_STATE, trainer, moments, run)
            write_json(folder / STAGE_FILE, summary)
            (folder / CARD).write_text(
                stage_card(folder, f"{_shown(trainer.args.output_dir)}/{planned.folder}"), encoding="utf-8"
            )
    return summary


def _shown(out: str) -> str:
    """Where the run's folder lies as seen from where it runs; of a place elsewhere on this machine the last name alone."""
    path = Path(out)
    return path.name if path.is_absolute() or ".." in path.parts else path.as_posix()


def _write_training_state(folder: Path, trainer: Any, moments: moments_file.Moments, run: StageRun) -> None:
    moments_file.save(moments, folder)
    trainer.state.save_to_json(str(folder / "trainer_state.json"))
    write_json(
        folder / "scheduler.json", {"schema": SCHEMA, "position": run.position(run.steps), "peak": run.span.peak}
    )
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    torch.save(states, folder / "rng_state.pth")


def _summary(runner: Any, planned: PlannedStage, run: StageRun, metrics: dict, change: Any) -> dict[str, Any]:
    position = run.position(run.steps)
    rate = run.span.lr(position) * run.steering.rate(run.steps)
    parents = []
    if planned.parent is not None:
        folder = runner.out / runner.plan[planned.parent].folder
        parents = [{"name": planned.parent, "folder": folder.name, "seal": checksum_file(folder / SEAL)}]
    transforms = [part_to_dict(transform, "transforms") for transform in runner.handover.transforms_up_to(planned.name)]
    return {
        "schema": SCHEMA,
        "index": planned.index,
        "name": planned.name,
        "stage": to_dict(planned.stage),
        "declared": runner.manifest.declared(planned.name),
        "parents": parents,
        "transforms": transforms,
        "base": runner.trainer.blueprint.to_dict(),
        "began_with": began_with(runner.manifest.described.get("model"), runner.trainer.blueprint.config),
        "steps": run.steps,
        "tokens": run.tokens,
        "seconds": round(run.seconds, 3),
        "global_step": runner.trainer.state.global_step,
        "schedule": {"root": planned.span_root, "position": position},
        "lr_peak": run.span.highest(run.s0, position),
        "lr_end": rate,
        "lr_groups": group_rates(runner.trainer, run.span.peak, rate),
        "taught_by": _teacher(runner, planned.stage),
        "ended_by": run.ended_by,
        "ended_because": run.over,
        "metrics": metrics,
        "data": run.drawn.summary(run.steps),
        "boundary": boundary(run.before, run.start, change.deviations),
        "domains": _domains(runner, planned, metrics, "eval_"),
        "domains_start": _domains(runner, planned, run.start, "start_"),
        "trains_on": trained_on(runner.plan.resolved, planned.name),
        "ledger": runner.ledger.to_list(),
        "remembered": remembered(runner.trainer),
        "versions": {"hf_stages": __version__, "transformers": transformers.__version__, "torch": torch.__version__},
    }


def _teacher(runner: Any, stage: Any) -> Any:
    """The teacher as declared, where the stage's losses use one."""
    if not runner.trainer.wants_teacher(stage):
        return None
    return to_dict(stage).get("teacher") or runner.manifest.described.get("teacher")


def _domains(runner: Any, planned: PlannedStage, metrics: dict, prefix: str) -> dict[str, dict[str, float]]:
    """Every domain that was measured: its loss over all items, bits per byte and task metrics."""
    resolved = runner.plan.resolved
    names, plain = domains_of(resolved, planned.name), plain_name(resolved[planned.name])
    bare = {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}
    found = by_domain(bare, [name for name in names if name != plain], plain)
    return {name: found[name] for name in names if name in found}


def boundary(before: dict, start: dict, deviations: dict) -> dict[str, Any]:
    """The transition shock: what evaluation said at the parent's end and at the stage's start, and the rise where both can be compared."""
    old = _comparable(before, "eval_")
    new = _comparable(start, "start_")
    shock = {key: new[key] - old[key] for key in new if key in old}
    return {"before": old, "start": new, "shock": shock, "deviations": deviations}


def _comparable(metrics: dict, prefix: str) -> dict[str, float]:
    return {
        key.removeprefix(prefix): value
        for key, value in metrics.items()
        if key.startswith(prefix) and not key.endswith(_TIMED)
    }
