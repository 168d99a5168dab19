"""Asks a stage's gates what to do, after updates, logs and evaluations, and has it done.

What they decide follows from the log and the ledger, and how updates are judged from windows that each checkpoint
holds. So a run that is cut and resumed does what it would have done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers.trainer_callback import TrainerState
from transformers.utils import logging

from hf_stages.core.ranks import from_main_rank
from hf_stages.evaluation.stage_metrics import StageMetrics
from hf_stages.gates.base import Decision, History
from hf_stages.gates.detectors.base import Detector
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

    def ask_detectors_at_end(self, state: TrainerState) -> bool:
        """Ask detectors about what was logged once the stage was over: its last log, and its final evaluation.

        An entry that they were asked about before has its answer in the ledger, and they do not repeat it. True: the
        stage went back, measure again.
        """
        logs, now = self.measured.logs(state), self.progress.global_step
        for count, log in enumerate(logs, 1):
            if log["step"] != now or "train_loss" in log:  # that one sums the stage up
                continue
            heard = ("log", "evaluation") if count == len(logs) else ("log",)
            gates = [one for one in self.planned.stage.gates if isinstance(one, Detector) and one.on in heard]
            if gates and self._act_at_end(gates, logs[:count]):
                return True
        return False

    def _act_at_end(self, gates: Sequence[Detector], logs: _Logs) -> bool:
        """Do what detectors decide of a stage that makes no further update. True: it went back."""
        for gate, answer in zip(gates, self._answers(gates, self.history(logs)), strict=True):
            if answer is None or self.decisions.stopping.stopped is not None:
                continue
            if gate.rows:
                self.incidents.record(answer.reason, by=type(gate).__name__, before=False)
            decision = meaning_at_end(answer)
            self.decisions.apply(decision, gate)
            if decision.action == "rollback":
                return True  # what the others found speaks of weights that are gone
        return False

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
            elif isinstance(gate, Detector) and gate.on == "log" and self._asked_at_end_alone(gate, logs):
                text = (
                    f"it was asked at the stage's end alone: nothing that it reads was logged within the "
                    f"{self.progress.steps} updates before; set logging_steps (or eval_steps) to less"
                )
                self.notes.note("notice", text, by=type(gate).__name__)
                logger.warning(f"stage {self.planned.name!r}: {type(gate).__name__}: {text}")

    def _asked_at_end_alone(self, gate: Detector, logs: _Logs) -> bool:
        metric, steps = gate.metric_read, self.progress.steps
        before = [log for log in logs if log["step"] < self.progress.global_step]
        return steps > 1 and not any(metric is None or metric in log for log in before)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the ways back, and of how updates are judged."""
        held = {"judged": self.updates.guard, "running_loss": self.updates.running}
        return {
            **self.rollbacks.state_dict(),
            **{name: None if one is None else one.state_dict() for name, one in held.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rollbacks.load_state_dict(state)
        if self.updates.guard is not None and state.get("judged") is not None:
            self.updates.guard.load_state_dict(state["judged"])
        if self.updates.running is not None and state.get("running_loss") is not None:
            self.updates.running.load_state_dict(state["running_loss"])

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


def meaning_at_end(decision: Decision) -> Decision:
    """Return what a detector's decision comes to where no update of the stage follows.

    The stage ends anyway, and draws no more data; a lower rate is what later stages go on from.

    >>> meaning_at_end(Decision("end", "the loss is NaN; the stage ends here")).action
    'alert'
    """
    if decision.action in ("end", "replay"):
        return replace(decision, action="alert", value=None)
    return replace(decision, skip_data=True) if decision.action == "rollback" else decision
