"""A finished stage on disk: a complete model, ``stage.json``, and ``training_state/``."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.trainer_callback import TrainerState

from hf_stages.core.sealed_folders import CARD, SCHEMA, STAGE_FILE, TRAINING_STATE, write_json, write_sealed_folder
from hf_stages.models import optimizer_moments as moments_file
from hf_stages.models.structure import save_weights
from hf_stages.packing.pack_folder import pack
from hf_stages.reports.cards.model_card import stage_card
from hf_stages.reports.finished_stage import FinishedStage
from hf_stages.training.progress_bar import without_bars

_STATE = "trainer_state.json"


def write_stage_folder(finished: FinishedStage, trainer: Any, moments: moments_file.Moments, peak: float) -> None:
    """Write the folder whole or not at all. Collective: sharded weights are gathered from every rank.

    Args:
        finished: The stage, and where its folder goes.
        trainer: Whose model, processing class and state are written.
        moments: The optimizer's state by parameter name.
        peak: The highest learning rate of the stage's schedule.
    """
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    state_dict = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None
    if not trainer.args.should_save:
        return
    with write_sealed_folder(finished.folder) as folder:
        with without_bars():
            save_weights(model, folder, state_dict=state_dict)
        if trainer.processing_class is not None:
            trainer.processing_class.save_pretrained(folder)
        schedule = {"schema": SCHEMA, "position": finished.schedule_position, "peak": peak}
        _write_training_state(folder / TRAINING_STATE, moments, trainer.state, schedule)
        write_json(folder / STAGE_FILE, finished.summary)
        shown = f"{_shown(trainer.args.output_dir)}/{finished.folder.name}"
        (folder / CARD).write_text(stage_card(folder, shown), encoding="utf-8")


def read_trainer_state(folder: Path) -> TrainerState:
    """Read what Trainer knew when the stage ended."""
    return TrainerState.load_from_json(str(folder / TRAINING_STATE / _STATE))


def write_exports(finished: FinishedStage) -> None:
    """Write the stage's exports, whole or not at all. If a process died before that, the next one writes them."""
    stage, target = finished.planned.stage, finished.folder.with_name(f"{finished.folder.name}-exports")
    if not (stage.exporters or stage.pack_on_save) or target.exists():
        return
    with write_sealed_folder(target) as folder:
        if stage.pack_on_save:
            pack(finished.folder, folder / "packed")
        for exporter in stage.exporters:
            exporter(finished.folder, folder)


def _shown(out: str) -> str:
    """Name the run's folder for others to read: as seen from where it runs, or an absolute path's last name."""
    path = Path(out)
    return path.name if path.is_absolute() or ".." in path.parts else path.as_posix()


def _write_training_state(folder: Path, moments: moments_file.Moments, state: TrainerState, schedule: Any) -> None:
    moments_file.save(moments, folder)
    state.save_to_json(str(folder / _STATE))
    write_json(folder / "scheduler.json", schedule)
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    torch.save(states, folder / "rng_state.pth")
