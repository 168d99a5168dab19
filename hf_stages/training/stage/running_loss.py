"""Trainer's running loss, where updates that are not finite are left out: the log has the mean of the others.

Trainer's own filter puts a share of the running sum in place of a loss that is not finite. That is nothing right behind
a log, and it keeps the parts of such an update that were finite. So a log would say less than any update had.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hf_stages.losses.objective.update_sums import Objective


class RunningLoss:
    """Keeps updates that are not finite out of Trainer's running loss, and out of what it is divided by.

    Args:
        trainer: Whose running loss it is.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.left_out = 0
        """How many of the stage's updates were not finite, up to the last log."""
        self._before: torch.Tensor | None = None

    def open_update(self) -> None:
        """Remember the running loss before an update."""
        self._before = self.trainer._tr_loss.clone()

    def take_in(self, loss: torch.Tensor, objective: Objective, *, closed: bool) -> torch.Tensor:
        """Return what Trainer is to add for a micro-batch. Nothing waits for the device.

        Args:
            loss: The micro-batch's.
            objective: Knows whether the whole update is finite, on all ranks, once it is ``closed``.
            closed: Whether this is its last micro-batch.
        """
        if not closed or objective.judged is None:
            return torch.where(torch.isfinite(loss), loss, torch.zeros_like(loss))
        assert self._before is not None
        running, finite = self.trainer._tr_loss, objective.judged.is_finite
        running.copy_(torch.where(finite.to(running.device), running, self._before))
        return torch.where(finite.to(loss.device), loss, torch.zeros_like(loss))

    def correct(self, logs: dict[str, Any], objective: Objective) -> None:
        """Divide the loss of a log by its finite updates alone; where there is none, the log has no loss."""
        left_out, updates = objective.count_left_out()
        self.left_out += left_out
        if left_out >= updates > 0:
            del logs["loss"]
        elif left_out:
            logs["loss"] *= updates / (updates - left_out)

    def correct_total(self, objective: Objective, steps: int) -> None:
        """Let Trainer's mean over the stage's ``steps`` updates be that of the finite ones; NaN where there is none."""
        trainer, finite = self.trainer, steps - self.left_out - objective.count_left_out()[0]
        if finite == steps:
            return
        factor = steps / finite if finite > 0 else float("nan")
        trainer._total_loss_scalar *= factor
        trainer._tr_loss *= factor

    def state_dict(self) -> dict[str, Any]:
        return {"left_out": self.left_out}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.left_out = state["left_out"]
