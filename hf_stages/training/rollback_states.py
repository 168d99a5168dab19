"""States of a stage that a rollback may go back to: weights that train, buffers and moments, whole or not there.

They lie beside the stage's folder while it runs. A checkpoint remembers which one was the last; that one stays as long as the
checkpoint does, so that a run that is cut and resumed goes back to the same state.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from hf_stages.core.sealed_folders import STATE_FILE, checkpoints, find_damage, read_json, write_sealed_folder

_FILE = "kept.pt"


def kept_folder(out: Path, stage: str) -> Path:
    return out / f"{stage}.kept"


def keep(trainer: Any, folder: Path, step: int) -> None:
    """Keep the stage's state after ``step`` updates, and no state that neither this process nor a checkpoint may go back to."""
    if not trainer.args.should_save:
        return
    state = {"weights": _weights(trainer.model), "optimizer": trainer.optimizer.state_dict()}
    with write_sealed_folder(folder / str(step)) as place:
        torch.save(state, place / _FILE)
    wanted = {step, *_remembered(folder.parent)}
    for other in folder.iterdir():
        if not other.name.isdecimal() or int(other.name) not in wanted:
            shutil.rmtree(other, ignore_errors=True)


def go_back(trainer: Any, folder: Path, step: int) -> None:
    """Put the kept weights and moments into the trainer's own."""
    place = folder / str(step)
    if (problem := find_damage(place)) is not None:
        raise ValueError(
            f"{place}: {problem}; the stage cannot go back to it. Remove its checkpoints and resume: the stage is trained again"
        )
    state = torch.load(place / _FILE, map_location="cpu", weights_only=True)
    with torch.no_grad():
        for name, tensor in _weights(trainer.model).items():
            tensor.copy_(state["weights"][name])
    trainer.optimizer.load_state_dict(state["optimizer"])


def forget(folder: Path) -> None:
    """The stage is done, or begins anew: nothing goes back to these."""
    shutil.rmtree(folder, ignore_errors=True)


def _weights(model: Any) -> dict[str, torch.Tensor]:
    trained = {name: tensor.detach() for name, tensor in model.named_parameters() if tensor.requires_grad}
    return {**trained, **{f"buffer {name}": tensor for name, tensor in model.named_buffers()}}


def _remembered(out: Path) -> set[int]:
    """What checkpoints remember; one that cannot be read will not be resumed from."""
    found = set()
    for _, checkpoint in checkpoints(out):
        try:
            found.add(read_json(checkpoint / STATE_FILE, "a stage state").get("kept"))
        except (ValueError, OSError):
            continue
    return {step for step in found if step is not None}
