"""Checkpoints inside a stage: Trainer writes them, a seal makes them trustworthy, and only then may older ones go."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.trainer_utils import rotate_checkpoints

from hf_stages.core.sealed_folders import SCHEMA, STATE_FILE, is_disk_error, seal_folder, write_json
from hf_stages.models.adapter_base import check_base, note_base
from hf_stages.models.adapters import (
    is_peft,
    layout_of,
    load_adapters,
    normalize_adapter_configs,
    save_adapter_state,
    trained_in_base,
)
from hf_stages.models.structure import load_weights
from hf_stages.training.stage.cut_stage import state_of

_BESIDE = "trained_beside_adapter.safetensors"


def save_checkpoint(trainer: Any, write: Callable[[], None]) -> None:
    """Let Trainer write ``checkpoint-N``, add the stage's state and the seal, then rotate.

    Trainer rotates before its caller knows that the new checkpoint is whole; with save_total_limit=1 a process killed
    in between has lost both.
    """
    stage, args = trainer._stage, trainer.args
    out = Path(args.output_dir)
    folder = out / f"checkpoint-{trainer.state.global_step}"
    state = {
        "schema": SCHEMA,
        "resumable": not args.save_only_model,
        "declared": trainer._runner.manifest.declared(stage.planned.name),
        **state_of(stage),
    }
    if args.should_save:
        shutil.rmtree(folder, ignore_errors=True)  # half-written by a process that died here
    _barrier(trainer)
    limit, args.save_total_limit = args.save_total_limit, None
    try:
        write()
        _barrier(trainer)
        if args.should_save:
            if is_peft(trainer.model) and not trainer.is_fsdp_enabled:
                _save_beside_adapter(trainer.model, folder)
            stage.losses.save(folder)
            best = trainer.state.best_model_checkpoint
            write_json(folder / STATE_FILE, {**state, "best": Path(best).name if best else None})
            seal_folder(folder)
    except Exception as error:
        if args.should_save:
            shutil.rmtree(folder, ignore_errors=True)
        if not is_disk_error(error):
            raise
        raise OSError(
            f"{folder} could not be written ({error}); every checkpoint and stage saved before it is whole. Free space "
            f"on {out} and resume with resume_from_checkpoint=True"
        ) from error
    finally:
        args.save_total_limit = limit
    if args.should_save:
        rotate_checkpoints(
            output_dir=str(out),
            save_total_limit=limit,
            best_model_checkpoint=trainer.state.best_model_checkpoint,
            use_mtime=True,
        )
    _barrier(trainer)


def load_checkpoint(trainer: Any, folder: str, read: Callable[[], None]) -> None:
    """Let Trainer ``read`` a checkpoint's weights, but for those that it would not put where they belong."""
    model, place = trainer.model, Path(folder)
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or not is_peft(model):
        read()
        if not trainer.is_fsdp_enabled:
            _load_renamed(model, place)
        return
    load_adapters(model, place)
    if (place / _BESIDE).is_file():
        model.load_state_dict(load_file(place / _BESIDE), strict=False)
    check_base(model, place)


def _save_beside_adapter(model: Any, folder: Path) -> None:
    """Save what PEFT's file, which is Trainer's checkpoint of a PEFT model, leaves out."""
    trained, state = trained_in_base(model), dict(model.named_parameters())
    if trained:
        save_file({name: state[name].detach().contiguous().cpu() for name in trained}, folder / _BESIDE)
    if layout_of(model).own:
        save_adapter_state(model, folder)
    normalize_adapter_configs(model, folder)
    note_base(model, folder)


def _load_renamed(model: Any, folder: Path) -> None:
    """Load a checkpoint whose names differ from the model's, such as a mixture of experts'.

    Trainer reads weights by the names in the file. It would go on with a warning and random experts.
    """
    file = folder / "model.safetensors"
    if not isinstance(model, PreTrainedModel) or not file.is_file():
        return
    with safe_open(file, framework="pt") as opened:
        stored = set(opened.keys())
    if not stored <= set(model.state_dict()):
        load_weights(model, folder)


def remove_hub_token(path: Path, args: Any) -> None:
    """Write Trainer's pickled args again without the Hub token in them."""
    if path.is_file() and args.hub_token is not None:
        clean = copy.copy(args)
        clean.hub_token = None
        torch.save(clean, path)


def _barrier(trainer: Any) -> None:
    if trainer.args.world_size > 1:
        trainer.accelerator.wait_for_everyone()
