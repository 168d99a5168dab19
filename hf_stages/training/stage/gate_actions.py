"""Asks a stage's gates what to do, after updates, logs and evaluations, and has it done.

What they decide follows from the log and the ledger, and how updates are judged from windows that each checkpoint
holds. So a run that is cut and resumed does what it would have done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers.trainer_callback import TrainerState
from transformers.utils import logging

from hf_stages.core.ranks import from_main_rank
from hf_stages.evaluation.stage_metrics import StageMetrics
from hf_stages.gates.base import History
from hf_stages.losses.objective.update_sums import Objective
from hf_stages.planning.domains import earlier_domains
from hf_stages.planning.plan import PlannedStage
from hf_stages.training.incidents.incidents import Incidents
from hf_stages.training.stage.decisions import Decisions
from hf_stages.training.stage.judged_updates import JudgedUpdates
from hf_stages.training.stage.progress import Progress
from hf_stages.training.stage.rollbacks import Rollbacks
from hf_stages.training.stage.stage_notes import StageNotes

logger = logging.get_logger(__name__)
_Logs = Sequence[Mapping[str, Any]]


class GateActions:
    """Asks the gates of one stage, and has done what they decide. Rank 0's answers hold on all ranks.

    Args:
        trainer: Whose arguments say which rank this is.
        planned: The stage, with its gates.
        decisions: Does what they decide.
        progress: How far the stage is.
        measured: The metrics that gates compare with.
        notes: The stage's part of the ledger, which they read.
        incidents: Writes down the rows of bad updates.
    """

    def __init__(
        self,
        trainer: Any,
        planned: PlannedStage,
        decisions: Decisions,
        *,
        progress: Progress,
        measured: StageMetrics,
        notes: StageNotes,
        incidents: Incidents,
    ) -> None:
        self.trainer, self.planned, self.decisions = trainer, planned, decisions
        self.progress, self.measured, self.notes = progress, measured, notes
        self.incidents = incidents
        self.updates = JudgedUpdates(
            trainer, planned.stage.gates, decisions, incidents, history=lambda: self.history(())
        )
        self.earlier = earlier_domains(trainer._staged_run_plan.resolved, planned.name)

    @property
    def rollbacks(self) -> Rollbacks:
        return self.decisions.rollbacks

    def bind(self, objective: Objective) -> None:
        """Let what has a memory in the stage go back with its weights, and updates be judged by their loss."""
        guard = self.updates.guard
        companions = {"balance": objective.balance, "windows": None if guard is None else guard.windows}
        self.rollbacks.companions = {name: one for name, one in companions.items() if one is not None}
        if guard is not None:
            self.updates.sums = objective

    def begin(self) -> None:
        """Before the first update, moments carried: save the state that can always be gone back to."""
        self.incidents.begin()
        self.rollbacks.begin()
        self._notice_rise(self.measured.start_as_evaluated, "at its first step")

    def after_update(self, state: TrainerState) -> None:
        """Ask the gates that watch every update, and save the state where one is due."""
        self.ask("step", state)
        if not self.decisions.stopping.is_decided:
            self.rollbacks.after_update()

    def ask(self, on: str, state: TrainerState) -> None:
        """Ask the gates that are asked ``on`` this occasion, and do what they decide, until one ends the stage."""
        gates = [gate for gate in self.planned.stage.gates if gate.on == on]
        if not gates:
            return
        for gate, decision in zip(gates, self._answers(gates, self.history(self.measured.logs(state))), strict=True):
            if decision is not None:
                if getattr(gate, "rows", False):
                    self.incidents.record(decision.reason, by=type(gate).__name__, before=False)
                self.decisions.apply(decision, gate)
                if decision.steps_back is not None:
                    return  # what the others found speaks of weights that are gone
            if self.decisions.stopping.is_decided:
                return

    def decide_at_end(self, logs: _Logs) -> bool:
        """Ask the gates for their last word, on the final metrics. True: the stage went back, measure again."""
        gates = [gate for gate in self.planned.stage.gates if gate.on == "evaluation"]
        if not gates:
            return False
        answers = self._answers([gate.at_end for gate in gates], self.history(logs))
        for gate, decision in zip(gates, answers, strict=True):
            if decision is not None:
                self.decisions.apply(decision, gate)
        return any(d is not None and d.action == "rollback" for d in answers)

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

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the ways back, and of how updates are judged."""
        guard = self.updates.guard
        return {**self.rollbacks.state_dict(), "judged": None if guard is None else guard.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rollbacks.load_state_dict(state)
        if self.updates.guard is not None and state.get("judged") is not None:
            self.updates.guard.load_state_dict(state["judged"])

    def _answers(self, gates: Sequence[Callable[[History], Any]], history: History) -> list[Any]:
        """Ask on rank 0 alone: timings and noisy metrics differ between ranks."""
        args = self.trainer.args
        return from_main_rank([gate(history) for gate in gates] if args.process_index == 0 else None, args)

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
