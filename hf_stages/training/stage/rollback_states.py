"""States of a stage that a rollback may go back to: weights that train, buffers and moments, whole or not there.

They lie beside the stage's folder while it runs. Each checkpoint says which one was the last; that one stays as long as
the checkpoint does, so that a run that is cut and resumed goes back to the same state.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from hf_stages.core.sealed_folders import STATE_FILE, checkpoints, find_damage, read_json, write_sealed_folder

_FILE = "kept.pt"


class RollbackStates:
    """Saves states of the stage in progress, and goes back to the last one.

    Args:
        trainer: Whose model and optimizer are saved.
        folder: Where the states lie, one folder for each.
    """

    def __init__(self, trainer: Any, folder: Path) -> None:
        self.trainer, self.folder = trainer, folder
        self.last: int | None = None
        """After how many of the stage's updates the last state was saved."""

    def save(self, step: int) -> None:
        """Save the state after ``step`` updates, and remove states that nothing can go back to."""
        trainer, self.last = self.trainer, step
        if trainer.args.should_save:
            state = {"weights": _weights(trainer.model), "optimizer": trainer.optimizer.state_dict()}
            with write_sealed_folder(self.folder / str(step)) as place:
                torch.save(state, place / _FILE)
            wanted = {step, *_named_by_checkpoints(self.folder.parent)}
            for other in self.folder.iterdir():
                if not other.name.isdecimal() or int(other.name) not in wanted:
                    shutil.rmtree(other, ignore_errors=True)
        if trainer.args.world_size > 1:
            trainer.accelerator.wait_for_everyone()

    def go_back(self) -> None:
        """Put the last state's weights and moments into the trainer's own."""
        assert self.last is not None
        place = self.folder / str(self.last)
        if (problem := find_damage(place)) is not None:
            raise ValueError(
                f"{place}: {problem}; the stage cannot go back to it. Remove its checkpoints and resume: the stage is "
                "trained again"
            )
        state = torch.load(place / _FILE, map_location="cpu", weights_only=True)
        with torch.no_grad():
            for name, tensor in _weights(self.trainer.model).items():
                tensor.copy_(state["weights"][name])
        self.trainer.optimizer.load_state_dict(state["optimizer"])


def rollback_folder(out: Path, stage_folder: str) -> Path:
    """Name the folder that holds a stage's states."""
    return out / f"{stage_folder}.kept"


def remove_states(folder: Path) -> None:
    """Remove all of a stage's states. It is done, or begins anew: nothing goes back to these."""
    shutil.rmtree(folder, ignore_errors=True)


def _weights(model: Any) -> dict[str, torch.Tensor]:
    trained = {name: tensor.detach() for name, tensor in model.named_parameters() if tensor.requires_grad}
    return {**trained, **{f"buffer {name}": tensor for name, tensor in model.named_buffers()}}


def _named_by_checkpoints(out: Path) -> set[int]:
    """Find the states that checkpoints go back to; a checkpoint that cannot be read will not be resumed from."""
    found = set()
    for _, checkpoint in checkpoints(out):
        try:
            found.add(read_json(checkpoint / STATE_FILE, "a stage state").get("kept"))
        except (ValueError, OSError):
            continue
    return {step for step in found if step is not None}
