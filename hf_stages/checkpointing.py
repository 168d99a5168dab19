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

from hf_stages.blueprint import is_adapter_key, is_peft, load_weights
from hf_stages.checkpoint import SCHEMA, STATE_FILE, disk_error, seal, write_json

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
        **stage.state_dict(),
    }
    if args.should_save:
        shutil.rmtree(folder, ignore_errors=True)  # half-written by a process that died here
    _barrier(trainer)
    limit, args.save_total_limit = args.save_total_limit, None
    try:
        write()
        _barrier(trainer)
        if args.should_save:
            _save_beside_adapter(trainer, folder)
            stage.losses.save(folder)
            best = trainer.state.best_model_checkpoint
            write_json(folder / STATE_FILE, {**state, "best": Path(best).name if best else None})
            seal(folder)
    except Exception as error:
        if args.should_save:
            shutil.rmtree(folder, ignore_errors=True)
        if not disk_error(error):
            raise
        raise OSError(
            f"{folder} could not be written ({error}); every checkpoint and stage saved before it is whole. Free space on "
            f"{out} and resume with resume_from_checkpoint=True"
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


def _save_beside_adapter(trainer: Any, folder: Path) -> None:
    """Trainer's checkpoint of a PEFT model is its adapter; weights of the base that train too would be lost."""
    model = trainer.model
    if not is_peft(model) or trainer.is_fsdp_enabled:
        return
    own = {n: p.detach().contiguous() for n, p in model.named_parameters() if p.requires_grad and not is_adapter_key(n)}
    if own:
        save_file({name: tensor.cpu() for name, tensor in own.items()}, folder / _BESIDE)


def load_beside_adapter(model: Any, folder: Path) -> None:
    """The base's trained weights of a PEFT checkpoint, where it has any."""
    if (folder / _BESIDE).is_file():
        model.load_state_dict(load_file(folder / _BESIDE), strict=False)


def load_renamed(model: Any, folder: Path) -> None:
    """Trainer reads a checkpoint's weights by the names they have in the file; of a mixture of experts these are others
    than the model's, and it would go on with a warning and random experts."""
    file = folder / "model.safetensors"
    if not isinstance(model, PreTrainedModel) or not file.is_file():
        return
    with safe_open(file, framework="pt") as opened:
        stored = set(opened.keys())
    if not stored <= set(model.state_dict()):
        load_weights(model, folder)


def without_token(path: Path, args: Any) -> None:
    """Trainer pickles its args beside the model, a Hub token among them."""
    if path.is_file() and args.hub_token is not None:
        clean = copy.copy(args)
        clean.hub_token = None
        torch.save(clean, path)


def _barrier(trainer: Any) -> None:
    if trainer.args.world_size > 1:
        trainer.accelerator.wait_for_everyone()
