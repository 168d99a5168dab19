"""States of a stage that a rollback may go back to: weights that train, buffers and moments, whole or not there.

They lie beside the stage's folder while it runs. Each checkpoint says which ones it may go back to; these stay as long
as the checkpoint does, so that a run that is cut and resumed goes back to the same state.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from hf_stages.core.sealed_folders import STATE_FILE, checkpoints, find_damage, read_json, write_sealed_folder

_FILE = "kept.pt"


class RollbackStates:
    """Saves states of the stage in progress, one folder for each, and goes back to one.

    Args:
        trainer: Whose model and optimizer are saved.
        folder: Where the states lie.
    """

    def __init__(self, trainer: Any, folder: Path) -> None:
        self.trainer, self.folder = trainer, folder

    def save(self, step: int, more: Mapping[str, Any], wanted: Collection[int]) -> None:
        """Save the state after ``step`` updates, and remove states that nothing can go back to.

        Args:
            step: Updates of the stage; the state's name.
            more: What is kept beside weights and moments, as plain data.
            wanted: The states that the run may go back to from here.
        """
        trainer = self.trainer
        _refuse_objects(trainer.optimizer)
        if trainer.args.should_save:
            state = {**more, "weights": _weights(trainer.model), "optimizer": trainer.optimizer.state_dict()}
            with write_sealed_folder(self.folder / str(step)) as place:
                torch.save(state, place / _FILE)
            held = {step, *wanted, *_named_by_checkpoints(self.folder.parent)}
            for other in self.folder.iterdir():
                if not other.name.isdecimal() or int(other.name) not in held:
                    shutil.rmtree(other, ignore_errors=True)
        if trainer.args.world_size > 1:
            trainer.accelerator.wait_for_everyone()

    def go_back(self, step: int) -> dict[str, Any]:
        """Put a state's weights and moments into the trainer's own. Gives back what was kept beside them."""
        place = self.folder / str(step)
        with ThreadPoolExecutor(1) as pool:  # the checksum is made while torch reads
            damage = pool.submit(find_damage, place)
            try:
                state = torch.load(place / _FILE, map_location="cpu", weights_only=True, mmap=True)
                state["optimizer"] = _in_memory(state["optimizer"], self.trainer.args.device)
                problem = damage.result()
            except Exception as error:
                problem = damage.result() or str(error)
        if problem is not None:
            raise ValueError(
                f"{place}: {problem}; the stage cannot go back to it. Remove its checkpoints and resume: the stage is "
                "trained again"
            )
        with torch.no_grad():
            for name, tensor in _weights(self.trainer.model).items():
                tensor.copy_(state["weights"][name])
        self.trainer.optimizer.load_state_dict(state["optimizer"])
        return {key: value for key, value in state.items() if key not in ("weights", "optimizer")}


def _in_memory(moments: Any, device: torch.device) -> Any:
    """Copy what an optimizer on the CPU would keep as it is given: the file is only mapped, and may be removed."""
    if isinstance(moments, dict):
        return {key: _in_memory(value, device) for key, value in moments.items()}
    if isinstance(moments, list):
        return [_in_memory(value, device) for value in moments]
    own = torch.is_tensor(moments) and (device.type == "cpu" or moments.numel() <= 1)
    return moments.clone() if own else moments


def _refuse_objects(optimizer: Any) -> None:
    """Refuse what torch would write and not read again, before a state that is needed proves to be unreadable."""
    for state in optimizer.state_dict()["state"].values():
        for name, value in state.items() if isinstance(state, Mapping) else ():
            if not (value is None or isinstance(value, torch.Tensor | int | float | str | list | tuple | dict)):
                raise ValueError(
                    f"Rollback: the optimizer keeps an object ({name!r}: {type(value).__name__}) in its state, with "
                    "which no state on disk can be read back; expected tensors and numbers. Use another optimizer, or "
                    "a ladder of CutRate and StopRun"
                )


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
    found: set[int | None] = set()
    for _, checkpoint in checkpoints(out):
        try:
            state = read_json(checkpoint / STATE_FILE, "a stage state")
        except (ValueError, OSError):
            continue
        found |= {state.get("kept"), *state.get("healthy", ())}
    return {step for step in found if step is not None}
