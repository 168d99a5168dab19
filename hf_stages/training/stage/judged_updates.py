"""Updates that are judged before they are stepped: the device leaves bad ones out, and the host hears of it later.

It hears with the next update's counts. What is done then is the ``OnSpike`` gate's to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers.utils import logging

from hf_stages.gates.base import Gate, History
from hf_stages.gates.detectors.on_spike import OnSpike
from hf_stages.gates.judged import JudgedUpdate
from hf_stages.losses.objective.update_sums import Objective
from hf_stages.training.incidents.incidents import Incidents
from hf_stages.training.stage.decisions import Decisions
from hf_stages.training.stage.running_loss import RunningLoss
from hf_stages.training.stage.update_guard import UpdateGuard

logger = logging.get_logger(__name__)


class JudgedUpdates:
    """Has each update judged, and asks the stage's ``OnSpike`` gate about bad ones. Without a gate it does nothing.

    Args:
        trainer: Whose updates are judged.
        gates: The stage's.
        decisions: Does what the gate decides.
        incidents: Writes down the rows of bad updates.
        history: Tells the gate of the stage so far.
    """

    sums: Objective | None = None
    """The sums of the stage's losses, which know the loss of the update at hand."""

    def __init__(
        self,
        trainer: Any,
        gates: Sequence[Gate],
        decisions: Decisions,
        incidents: Incidents,
        *,
        history: Callable[[], History],
    ) -> None:
        self.trainer, self.decisions, self.incidents, self.history = trainer, decisions, incidents, history
        gate = next((gate for gate in gates if isinstance(gate, OnSpike)), None)
        self.guard = UpdateGuard(gate, trainer.args.device) if gate is not None else None
        self.running = RunningLoss(trainer) if gate is not None and gate.non_finite else None
        """Keeps Trainer's running loss finite, where updates that are not may be left out."""

    @property
    def unheard(self) -> torch.Tensor:
        """How the newest update was judged, on its way to the host. Its second number is 1 if it was left out."""
        return torch.zeros(0) if self.guard is None else self.guard.unheard

    def judge(self, grad_norm: Any) -> None:
        """Judge the update at hand by its loss, and by the norm of its gradient before clipping."""
        if self.guard is not None and self.sums is not None and self.sums.judged is not None:
            self.guard.judge(self.sums.judged.loss, grad_norm)

    def before_step(self, optimizer: Any) -> None:
        """Leave the update out where it was judged bad, once callbacks have seen its gradient."""
        if self.guard is not None and self.sums is not None:
            self.guard.leave_out(optimizer, sharded=self.trainer.is_fsdp_enabled)
            self.sums.leave_out(self.guard.skip)

    def open_update(self, numbers: Sequence[float], left_out: float) -> bool:
        """Take in how the update before was judged, and act where it was bad. True: the next one reads other rows now.

        Args:
            numbers: What was ``unheard``. All ranks have the same, so each asks for itself.
            left_out: How many ranks have left it out.
        """
        if self.guard is None:
            return False
        world = self.trainer.args.world_size
        if left_out not in (0, world):
            raise RuntimeError(
                f"stage {self._stage!r}: {left_out:.0f} of {world} ranks have skipped an update and the others have "
                "not, so their weights differ; resume from the last checkpoint. Does something change gradients on one "
                "rank alone?"
            )
        changed = self._act_on(numbers)
        if self.sums is not None:
            self.guard.windows.weigh(self.sums.weights())
        self.guard.open_update(self.trainer.model)
        return changed

    def hear(self) -> None:
        """Take in how the newest update was judged before anything else is made of it, such as a checkpoint.

        So a run that is cut there knows of it, and its rows are still at hand. The host waits for the device.
        """
        if self.guard is not None:
            self._act_on(self.guard.unheard.tolist())

    def _act_on(self, numbers: Sequence[float]) -> bool:
        """Note a bad update, and do what the gate says unless the stage ends anyway. True: data come again."""
        assert self.guard is not None
        judged, gate = self.guard.hear(numbers), self.guard.gate
        if not judged.is_bad:
            return False
        if judged.was_skipped:  # the weights are those from before it
            self._note(judged)
            self._record(judged)
        ends = self.decisions.stopping.is_decided
        decision = None if ends else gate(replace(self.history(), update=judged))
        if decision is not None:
            self.decisions.apply(decision, gate)
            if decision.action == "alert":
                self.guard.windows.forget()  # what lasts is no spike
        went_back = decision is not None and decision.action == "rollback"
        if not judged.was_skipped:
            self._record(judged, before=went_back)
        return went_back and decision is not None and not decision.skip_data

    def _record(self, judged: JudgedUpdate, *, before: bool = True) -> None:
        """Write down the rows of a bad update."""
        assert self.guard is not None
        if not self.guard.gate.rows:
            return
        by = type(self.guard.gate).__name__
        self.incidents.record(judged.text, by=by, typical=judged.typical, before=before)

    def _note(self, judged: JudgedUpdate) -> None:
        """Note an update that was skipped."""
        assert self.guard is not None
        notes = self.decisions.notes
        notes.note("skip", f"{judged.text}; the update was skipped", by=type(self.guard.gate).__name__)
        logger.warning(f"stage {self._stage!r}: step {notes.progress.global_step}: {judged.text}; skipped")

    @property
    def _stage(self) -> str:
        return self.decisions.notes.stage
