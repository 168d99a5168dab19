"""Asks a stage's gates, and does what they decide: end it, lower its learning rate, go back to a saved state, replay.

The learning rate follows from the schedule and the ledger, and the data that is drawn from the recipe and the ledger.
Each checkpoint says which state to go back to. So a run that is cut and resumed does what it would have done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers.trainer_callback import TrainerState
from transformers.utils import logging

from hf_stages.core.ranks import from_main_rank
from hf_stages.evaluation.stage_metrics import StageMetrics
from hf_stages.gates.base import Decision, Gate, History
from hf_stages.planning.domains import earlier_domains
from hf_stages.planning.plan import PlannedStage
from hf_stages.training.incidents.incidents import Incidents
from hf_stages.training.stage.learning_rate import LearningRate
from hf_stages.training.stage.progress import Progress
from hf_stages.training.stage.rollback_states import RollbackStates, remove_states
from hf_stages.training.stage.stage_feed import StageFeed
from hf_stages.training.stage.stage_notes import StageNotes
from hf_stages.training.stage.stopping import Stopping

logger = logging.get_logger(__name__)
_Logs = Sequence[Mapping[str, Any]]


class GateActions:
    """Asks the gates of one stage and does what they decide. Rank 0's answers hold on all ranks.

    Args:
        trainer: Whose optimizer and scheduler take a new learning rate.
        planned: The stage, with its gates.
        states: Where a rollback goes back to.
        progress: How far the stage is.
        measured: The metrics that gates compare with.
        notes: The stage's part of the ledger, which every decision is written to.
        rate: The stage's learning rate.
        stopping: Ends the stage where a gate says so.
        feed: The stage's data, which a decision to replay changes.
        incidents: Writes down the rows of bad updates.
    """

    def __init__(
        self,
        trainer: Any,
        planned: PlannedStage,
        states: RollbackStates,
        *,
        progress: Progress,
        measured: StageMetrics,
        notes: StageNotes,
        rate: LearningRate,
        stopping: Stopping,
        feed: StageFeed,
        incidents: Incidents,
    ) -> None:
        self.trainer, self.planned, self.states = trainer, planned, states
        self.progress, self.measured, self.notes = progress, measured, notes
        self.rate, self.stopping, self.feed, self.incidents = rate, stopping, feed, incidents
        self.keeps = any(gate.keeps for gate in planned.stage.gates)
        """Whether a gate may go back to the stage's start."""
        self.earlier = earlier_domains(trainer._staged_run_plan.resolved, planned.name)

    def begin(self) -> None:
        """Before the first update, moments carried: save the state that can always be gone back to."""
        if self.trainer.args.should_save:
            remove_states(self.states.folder)
        self.incidents.begin()
        if self.keeps:
            self.states.save(self.progress.steps)
        self._notice_rise(self.measured.start_as_evaluated, "at its first step")

    def ask(self, on: str, state: TrainerState) -> None:
        """Ask the gates that are asked ``on`` this occasion, and do what they decide, until one ends the stage."""
        gates = [gate for gate in self.planned.stage.gates if gate.on == on]
        if not gates:
            return
        for gate, decision in zip(gates, self._answers(gates, self.history(self.measured.logs(state))), strict=True):
            if decision is None:
                continue
            if decision.action == "end":
                self.stopping.end(decision.reason, by=type(gate).__name__)
                return
            self.apply(decision, gate)
            if self.stopping.over is not None:
                return

    def decide_at_end(self, logs: _Logs) -> bool:
        """Ask the gates for their last word, on the final metrics. True: the stage went back, measure again."""
        gates = [gate for gate in self.planned.stage.gates if gate.on == "evaluation"]
        if not gates:
            return False
        answers = self._answers([gate.at_end for gate in gates], self.history(logs))
        for gate, decision in zip(gates, answers, strict=True):
            if decision is not None:
                self.apply(decision, gate)
        return any(d is not None and d.action == "rollback" for d in answers)

    def apply(self, decision: Decision, gate: Gate) -> None:
        """Do what a gate decided, but for ``end``, and write it to the ledger."""
        by = type(gate).__name__
        _check_announced(decision, gate, f"stage {self.planned.name!r}: gates: {by}")
        if decision.action == "keep":
            self.states.save(self.progress.steps)
            return
        if decision.action == "rollback":
            self.states.go_back()
        reason = decision.reason + self._where_it_went_back_to(decision)
        self.notes.note(decision.action, reason, by=by, value=decision.value)
        logger.warning(f"stage {self.planned.name!r}: {reason}")
        if decision.action == "replay":
            self.feed.replay_from_now()
        if decision.action in ("cut_lr", "rollback"):
            self.rate.apply(self.trainer.optimizer, self.trainer.lr_scheduler)
        if decision.action == "rollback" and decision.value is None and self.stopping.over is None:
            self.stopping.end(reason, by=by)

    def after_evaluation(self, state: TrainerState) -> None:
        """Notice a rise over the parent's losses, and ask the gates that watch evaluations."""
        newest: dict[str, Any] = {}
        for log in self.measured.logs(state):
            newest.update(log)
        self._notice_rise(newest, f"after {self.progress.steps} updates")
        self.ask("evaluation", state)

    def history(self, logs: _Logs) -> History:
        progress = self.progress
        return History(
            step=progress.steps,
            tokens=int(progress.tokens),
            seconds=progress.seconds,
            logs=list(logs),
            before=self.measured.reference,
            earlier=self.earlier,
            entries=self.notes.entries(),
            first_step=progress.first_step,
        )

    def note_silent(self, logs: _Logs) -> None:
        """Note gates whose metric was never logged: they could not have fired."""
        history = self.history(logs)
        for gate in self.planned.stage.gates:
            metric = gate.metric_read
            if gate.on == "log" and metric is not None and not history.values(metric):
                known = ", ".join(sorted({key for log in history.logs for key in log}))
                self.notes.note("notice", f"{metric} was never logged; there are {known}", by=type(gate).__name__)

    def _answers(self, gates: Sequence[Callable[[History], Any]], history: History) -> list[Any]:
        """Ask on rank 0 alone: timings and noisy metrics differ between ranks."""
        args = self.trainer.args
        return from_main_rank([gate(history) for gate in gates] if args.process_index == 0 else None, args)

    def _where_it_went_back_to(self, decision: Decision) -> str:
        if decision.action != "rollback":
            return ""
        step = self.states.last
        return f"; went back to {'the start of the stage' if not step else f'the state after {step} updates'}"

    def _notice_rise(self, now: Mapping[str, Any], when: str) -> None:
        """Note, once per stage, that a loss is far above the parent's. Near its start a stage should be close to it."""
        if any(entry.by == "boundary" for entry in self.notes.entries("notice")):
            return
        if (rise := self.measured.rise(now)) is not None:
            key, ended, found = rise
            text = f"{when}, {key} is {found:.4g}, far above the {ended:.4g} that its parent ended with"
            advice = "a lower learning rate, a warmup or replay of earlier data keeps it closer"
            self.notes.note("notice", f"{text}: {advice}", by="boundary")
            logger.warning(f"stage {self.planned.name!r}: {text}")


def _check_announced(decision: Decision, gate: Gate, where: str) -> None:
    """Refuse what the stage was not prepared for: it has no state to go back to, or no data to replay."""
    for action, member, announced in (("rollback", "keeps", gate.keeps), ("replay", "replays", gate.replays)):
        if decision.action == action and not announced:
            raise ValueError(
                f"{where}: it answered {action!r}, but the stage was not prepared for it; expected a gate that says so "
                f"before: set {member} = True in its class, or give it a field action with the value {action!r}"
            )
