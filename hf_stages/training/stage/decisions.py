"""Does what gates decide (cut the learning rate, go back, replay, end the stage, stop the run) and writes it down."""

from __future__ import annotations

from typing import Any

from transformers.utils import logging

from hf_stages.gates.base import Decision, Gate
from hf_stages.training.stage.learning_rate import LearningRate
from hf_stages.training.stage.rollbacks import Rollbacks
from hf_stages.training.stage.stage_feed import StageFeed
from hf_stages.training.stage.stage_notes import StageNotes
from hf_stages.training.stage.stopping import Stopping

logger = logging.get_logger(__name__)


class Decisions:
    """Carries out the decisions of one stage's gates, on all ranks alike.

    Args:
        trainer: Whose optimizer and scheduler take a new learning rate.
        rollbacks: The states that can be gone back to.
        notes: The stage's part of the ledger.
        rate: The stage's learning rate.
        stopping: Ends the stage, or stops the run.
        feed: The stage's data, which a decision to replay or to go back may change.
    """

    def __init__(
        self,
        trainer: Any,
        rollbacks: Rollbacks,
        *,
        notes: StageNotes,
        rate: LearningRate,
        stopping: Stopping,
        feed: StageFeed,
    ) -> None:
        self.trainer, self.rollbacks, self.notes = trainer, rollbacks, notes
        self.rate, self.stopping, self.feed = rate, stopping, feed

    def apply(self, decision: Decision, gate: Gate) -> None:
        """Do what a gate decided."""
        by = type(gate).__name__
        _check_announced(decision, gate, f"stage {self.notes.stage!r}: gates: {by}")
        if decision.action == "keep":
            self.rollbacks.keep()
            return
        if decision.action == "end":
            self.stopping.end(decision.reason, by=by)
            return
        reason, went_to = decision.reason, None
        if decision.action == "rollback":
            went_to = self.rollbacks.go_back(decision)
            if self.trainer._stage is not None:
                self.trainer._stage.monitors.reset()  # what they gathered is of weights that are gone
            where = "the start of the stage" if not went_to else f"the state after {went_to} updates"
            reason = f"{reason}; went back to {where}"
        again = went_to if decision.steps_back is not None and not decision.skip_data else None
        self.notes.note(decision.action, reason, by=by, value=decision.value, again_from=again)
        logger.warning(f"stage {self.notes.stage!r}: {reason}")
        if decision.action == "stop":
            self.stopping.stop(reason)
        if decision.action == "replay":
            self.feed.replay_from_now()
        if again is not None:
            self.feed.come_again()
        if decision.action in ("cut_lr", "rollback"):
            self.rate.apply(self.trainer.optimizer, self.trainer.lr_scheduler)
        if decision.action == "rollback" and decision.value is None and self.stopping.over is None:
            self.stopping.end(reason, by=by)


def _check_announced(decision: Decision, gate: Gate, where: str) -> None:
    """Refuse what the stage was not prepared for: it has no state to go back to, or no data to replay."""
    for action, member, announced in (("rollback", "keeps", gate.keeps), ("replay", "replays", gate.replays)):
        if decision.action == action and not announced:
            raise ValueError(
                f"{where}: it answered {action!r}, but the stage was not prepared for it; expected a gate that says so "
                f"before: set {member} = True in its class, or give it a field action with the value {action!r}"
            )
