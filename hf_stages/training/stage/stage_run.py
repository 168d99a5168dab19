"""The stage in progress: what Trainer's loop and its callbacks ask of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from hf_stages.core.ledger import Ledger
from hf_stages.evaluation.stage_metrics import StageMetrics
from hf_stages.evaluation.start_metrics import start_metrics
from hf_stages.losses.objective.task_probe import learn_reduction
from hf_stages.losses.objective.update_sums import Objective
from hf_stages.monitors.at_work import Monitoring, logs_at
from hf_stages.planning.measure_data import stage_seed
from hf_stages.planning.plan import Plan, PlannedStage
from hf_stages.schedules.base import Span
from hf_stages.training.incidents.incidents import Incidents
from hf_stages.training.stage.cut_stage import CutStage, restore, restore_loop
from hf_stages.training.stage.decisions import Decisions
from hf_stages.training.stage.gate_actions import GateActions
from hf_stages.training.stage.learning_rate import LearningRate, stages_of_schedule
from hf_stages.training.stage.progress import Progress
from hf_stages.training.stage.rollback_states import RollbackStates, rollback_folder
from hf_stages.training.stage.rollbacks import Rollbacks
from hf_stages.training.stage.stage_data import StageData
from hf_stages.training.stage.stage_feed import StageFeed
from hf_stages.training.stage.stage_monitors import begin_monitors, weighted_terms
from hf_stages.training.stage.stage_notes import StageNotes
from hf_stages.training.stage.stopping import Stopping

_ENDLESS = 10**9
"""Updates that Trainer is told where the cap is in tokens; the stage ends itself long before."""


class StageRun:
    """Puts together what one stage is made of while it trains.

    Args:
        trainer: With the stage's arguments, datasets and model.
        planned: The stage in absolute numbers.
        plan: The whole run's.
        span: The learning rate over the stage and those that share its schedule.
        start: Where in the span the stage starts.
        ledger: The run's; the stage appends to it.
        first_step: Updates that the run had done before the stage.
        run_steps: Updates of the whole run as planned from here.
        before: Metrics that the parent ended with.
        resumed: Where the stage was cut; None where it begins.
    """

    losses: Any = None
    """The StageLosses in place while the stage trains."""
    monitors = Monitoring()
    """The stage's monitors at work; none before its model is in place."""

    def __init__(
        self,
        trainer: Any,
        planned: PlannedStage,
        plan: Plan,
        *,
        span: Span,
        start: float,
        ledger: Ledger,
        first_step: int,
        run_steps: int,
        before: dict[str, float],
        resumed: CutStage | None,
    ) -> None:
        args = trainer.args
        if resumed is not None:
            first_step, start = resumed.state["first_step"], resumed.state["s0"]
        _make_absolute(args, planned, span.peak)
        self.trainer, self.resumed = trainer, resumed
        self.progress = Progress(planned, first_step, run_steps, args.gradient_accumulation_steps)
        self.notes = StageNotes(ledger, planned.name, self.progress)
        self.rate = LearningRate(span, start, self.progress, ledger, stages_of_schedule(planned, plan))
        self.stopping = Stopping(args, self.progress, self.notes, trainer._stop_request)
        data = StageData(trainer.train_dataset, planned, args, stage_seed(args, planned.name))
        self.feed = StageFeed(trainer, data, self.progress, self.notes)
        self.measured = StageMetrics(trainer, before)
        states = RollbackStates(trainer, rollback_folder(Path(args.output_dir), planned.folder))
        rollbacks = Rollbacks(states, planned.stage.gates, progress=self.progress, notes=self.notes)
        decisions = Decisions(
            trainer, rollbacks, notes=self.notes, rate=self.rate, stopping=self.stopping, feed=self.feed
        )
        self.gates = GateActions(
            trainer,
            planned,
            decisions,
            progress=self.progress,
            measured=self.measured,
            notes=self.notes,
            incidents=Incidents(trainer, planned, self.feed, self.notes),
        )
        if resumed is not None:
            restore(self, resumed)

    @property
    def planned(self) -> PlannedStage:
        return self.progress.planned

    @property
    def objective(self) -> Objective:
        """The sums of the stage's losses. They are there from the moment that the stage begins to train."""
        assert self.losses.objective is not None
        return self.losses.objective

    @property
    def t(self) -> float:
        return self.progress.t

    # ---- from the first update to the last ---------------------------------------------------------------------------

    def begin(self) -> None:
        """Measure the model at the stage's start, or go on where it was cut. Model and optimizer are ready."""
        self.progress.start_clock()
        self.set_progress()
        self.monitors = begin_monitors(self)
        self.gates.bind(self.objective)
        if self.resumed is not None:
            restore_loop(self, self.resumed)
            return
        self.measured.start = start_metrics(self.trainer, self.planned, self.measured.before)
        self.gates.begin()

    def set_progress(self, t: float | None = None) -> None:
        """Tell the stage's transforms how far it is, or that it is done (1)."""
        for transform in self.planned.stage.transforms:
            transform.at(self.trainer.model, self.t if t is None else t)

    def open_update(self, batches: list[Any]) -> bool:
        """Count the update's items over all ranks. The clock is rank 0's, and a request to stop holds for all.

        How the update before was judged comes to the host with these counts. True: it led back, to rows that are to be
        taken in place of these.
        """
        progress, stopping, drawn = self.progress, self.stopping, self.feed.drawn
        progress.micro_batches = 0
        seconds = progress.seconds_now() if self.trainer.args.process_index == 0 else 0.0
        unheard, counts = self.gates.updates.unheard, drawn.take_out_of(batches)
        extras = [seconds, 1.0 if stopping.request.reason else 0.0, unheard[1:2].sum(), *counts]
        self.set_progress()
        learn_reduction(self.trainer, self.objective, batches)
        totals = self.objective.open_update(batches, self.t, extras)
        tokens, progress.seconds, stop, left_out, *more = torch.cat([totals, unheard.to(totals)]).tolist()
        if self.gates.updates.open_update(more[len(counts) :], left_out):
            return True
        self.monitors.begin_update(progress.steps + 1, logged=logs_at(self.trainer.args, progress.global_step + 1))
        drawn.add(more[: len(counts)], progress.steps)
        progress.tokens += tokens
        stopping.hear(stop > 0)
        return False

    def watch(self, model: Any) -> dict[str, float]:
        """Give what a training log adds: the mean of each term, and what the stage's monitors say."""
        seen = {**self.objective.drain_log(), **self.feed.drawn.drain_log()}
        view = {
            "model": model,
            "step": self.progress.steps,
            "t": self.t,
            "tokens": self.progress.tokens,
            "teacher": self.trainer.stage_teacher,
            "loss_terms": weighted_terms(self, seen),
        }
        return {**seen, **self.monitors.log(view)}

    # ---- what callbacks are told -------------------------------------------------------------------------------------

    def after_update(self, state: TrainerState, control: TrainerControl) -> TrainerControl:
        """Decide, after the callbacks, whether the stage is over and whether a save waits for the epoch's end."""
        self.stopping.after_callbacks(state, control)
        if self.stopping.pauses(control):
            self.gates.updates.hear()
        if not self.stopping.is_decided:
            self.gates.after_update(state)
        return self.stopping.conclude(control)

    def after_log(self, state: TrainerState, control: TrainerControl) -> TrainerControl:
        """Ask the gates that read the log."""
        if not self.stopping.is_decided and self.progress.steps:
            self.gates.ask("log", state)
            if self.stopping.is_decided:
                self.stopping.obey(control)
        return control

    def after_evaluation(self, state: TrainerState, control: TrainerControl) -> None:
        """Ask the gates after an evaluation of all sets, before a checkpoint of the same step."""
        if not self.stopping.is_decided and self.progress.steps:
            self.gates.after_evaluation(state)
            if self.stopping.is_decided:
                self.stopping.obey(control)


def _make_absolute(args: TrainingArguments, planned: PlannedStage, peak: float) -> None:
    """Give the stage's arguments its length and rate. A fraction (``eval_steps=0.1``) is one of the stage."""
    args.max_steps = planned.steps if planned.exact else _ENDLESS
    args.learning_rate = peak
    for name in ("logging_steps", "eval_steps", "save_steps"):
        value = getattr(args, name)
        if value is not None and 0 < value < 1:
            setattr(args, name, math.ceil(value * planned.steps))
