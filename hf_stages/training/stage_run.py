"""One stage while it trains: where it stands, what it reads, when it is over.

Everything that must survive a cut is in ``state_dict``; everything else is computed from it.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from hf_stages.core.ledger import Ledger
from hf_stages.core.ranks import from_all_ranks, from_main_rank
from hf_stages.data.collators.progress import ProgressDataset, ProgressSampler, ProgressStream
from hf_stages.data.stage_collator import reads_progress
from hf_stages.evaluation.last_evaluation import LastEvaluation
from hf_stages.evaluation.start_metrics import start_metrics
from hf_stages.gates.base import History
from hf_stages.losses.objective.task_probe import learn_reduction
from hf_stages.losses.objective.update_sums import Objective
from hf_stages.planning.measure_data import stage_seed
from hf_stages.planning.plan import PlannedStage
from hf_stages.schedules.base import Span
from hf_stages.training.gate_actions import Steering
from hf_stages.training.reload_data import Refetch
from hf_stages.training.source_counts import Drawn
from hf_stages.training.stage_data import StageData
from hf_stages.training.trainer_counters import remember, remembered

_ENDLESS = 10**9
"""Updates that Trainer is told where the cap is in tokens; the stage ends itself long before."""


@dataclass
class StageRun:
    """The stage in progress."""

    trainer: Any
    planned: PlannedStage
    args: TrainingArguments
    dataset: Any
    span: Span
    s0: float
    """Where in the span the stage starts: below the planned position where a gate ended the parent early."""
    ledger: Ledger
    first_step: int
    run_steps: int
    """Updates of the whole run as planned from here: what progress bars count up to."""
    objective: Objective | None = None
    losses: Any = None
    """The StageLosses in place while the stage trains."""
    evaluated: Any = None
    """The TeacherTerms of an evaluation within the stage."""
    resumed: dict[str, Any] | None = None
    checkpoint: str | None = None
    """The folder that ``resumed`` was read from."""
    before: dict[str, float] = field(default_factory=dict)
    """Metrics that the parent ended with."""
    start: dict[str, float] = field(default_factory=dict)
    """Metrics after the stage's transforms, before its first update."""
    steps: int = 0
    tokens: float = 0.0
    over: str | None = None
    """Why the stage ended; None while it goes on."""
    ended_by: str = ""
    interrupted: str | None = None

    def __post_init__(self) -> None:
        self.args.max_steps = self.planned.steps if self.planned.exact else _ENDLESS
        self.args.learning_rate = self.span.peak
        for name in ("logging_steps", "eval_steps", "save_steps"):  # a fraction is one of the stage
            value = getattr(self.args, name)
            if value is not None and 0 < value < 1:
                setattr(self.args, name, math.ceil(value * self.planned.steps))
        self.seed = stage_seed(self.args, self.planned.name)
        self.history_start = 0
        self.began = time.monotonic()
        self.seconds_before = 0.0
        self.seconds = 0.0
        self._updates_done = self._epoch = 0
        self._epoch_updates = self._epoch_batches = 0
        self._skipped = 0
        self._save_deferred = self._stop_agreed = False
        self.data = StageData(self.dataset, self.planned, self.args, self.seed)
        self.drawn = Drawn(self.data.blend, self.planned.steps, self.planned.size.global_batch)
        self.steering, self.refetch = Steering(self), Refetch(self)
        self.last_evaluation = LastEvaluation(self.trainer)
        if self.resumed is not None:
            self.load_state_dict(self.resumed)

    # ---- progress -------------------------------------------------------------------------------------------------

    @property
    def t(self) -> float:
        until = self.planned.stage.until
        if until.unit == "tokens":  # type: ignore[union-attr]
            return min(self.tokens / until.amount, 1.0)  # type: ignore[union-attr]
        return min(self.steps / self.planned.steps, 1.0)

    def position(self, step: int | None = None) -> float:
        """Where in the learning-rate span the stage stands after ``step`` updates (now, where it goes by tokens)."""
        length = self.planned.s1 - self.s0
        if self.planned.exact and step is not None:
            return self.s0 + min(step, self.planned.steps) * length / self.planned.steps
        return self.s0 + self.t * length

    def multiplier(self, step: int) -> float:
        return self.span.shape(self.position(step)) * self.steering.rate(step)

    # ---- data -----------------------------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While Trainer builds its dataloader."""
        view = self.data.view(self.trainer)
        if reads_progress(self.trainer.data_collator):
            view = ProgressStream(view, self.place_of) if view is self.data.stream else ProgressDataset(view)
        self.trainer.train_dataset = view
        try:
            yield
        finally:
            self.trainer.train_dataset = self.dataset

    def make_sampler(self, theirs: Any) -> Any:
        sampler = self.data.make_sampler(theirs)
        return ProgressSampler(sampler, self.place_of) if reads_progress(self.trainer.data_collator) else sampler

    def place_of(self, epoch: int, position: int) -> float:
        """Progress of the update that takes the example at ``position`` of an epoch; by planned updates, for a stage in tokens."""
        size = self.planned.size
        update = epoch * (size.updates_per_epoch or 0) + position // size.global_batch
        return min(update / self.planned.steps, 1.0)

    def enter_epoch(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Set the data to this epoch's place; a resumed epoch is as much shorter as it was trained already."""
        self._epoch = kwargs["epoch"]
        self._epoch_batches, self._epoch_updates = kwargs["steps_in_epoch"], kwargs["num_update_steps_per_epoch"]
        self._updates_done, self._skipped = self._skipped, 0
        done = self._updates_done
        self.data_at_next()
        done_batches = done * self.args.gradient_accumulation_steps
        return {
            **self.refetch.enter(kwargs),
            "steps_in_epoch": self._epoch_batches - done_batches,
            "num_update_steps_per_epoch": self._epoch_updates - done,
        }

    def data_at_next(self) -> None:
        self.data.at(self._epoch, self._updates_done)

    # ---- Trainer's state --------------------------------------------------------------------------------------------

    def place(self, trainer: Any, updates_per_epoch: int, carried: TrainerState) -> tuple[int, int]:
        """Set the fresh (or restored) TrainerState to where the run stands. Returns Trainer's (epoch, skip)."""
        state = trainer.state
        trainer.current_flos = 0  # of an update that was cut in this very process
        if self.resumed is None:
            state.global_step = self.first_step
            state.log_history = carried.log_history
            state.total_flos = carried.total_flos
            state.num_input_tokens_seen = carried.num_input_tokens_seen
            self.history_start = len(state.log_history)
        elif (best := self.resumed.get("best")) is not None:
            state.best_model_checkpoint = str(Path(self.args.output_dir) / best)  # the run's folder may have been moved
        state.max_steps = self.first_step + self.run_steps
        if self.over is not None:
            return sys.maxsize, 0  # nothing left to train, only to finish
        self._skipped = self.steps % updates_per_epoch
        return self.steps // updates_per_epoch, 0

    def begins(self, state: TrainerState) -> None:
        """At on_train_begin, model wrapped and optimizer made: measure the boundary, or take up where it was cut."""
        trainer = self.trainer
        self.began = time.monotonic()
        self.set_progress()
        if self.resumed is None:
            self.start = start_metrics(self)
            self.steering.begin()
            return
        loop = self.resumed["loop"]
        trainer._tr_loss += loop["tr_loss"][self.args.process_index]
        trainer._total_loss_scalar = loop["total_loss"]
        trainer._globalstep_last_logged = loop["last_logged"]
        trainer._initial_global_step = self.first_step
        if self.over is not None:
            trainer._load_rng_state(self.checkpoint)  # otherwise Trainer does, as the first epoch begins

    def count_update(self, state: TrainerState) -> None:
        """Before any callback sees the end of an update."""
        self.steps += 1
        self._updates_done += 1
        batches = min(self._updates_done * self.args.gradient_accumulation_steps, self._epoch_batches)
        state.epoch = self._epoch + batches / self._epoch_batches
        if self._capped() is None and state.global_step >= state.max_steps:
            state.max_steps = state.global_step + 1  # a token budget took more updates than estimated

    def after_update(self, state: TrainerState, control: TrainerControl) -> TrainerControl:
        """After the callbacks: is the stage over, is a save to wait for the epoch's end?"""
        capped = self._capped()
        if control.should_training_stop and state.global_step < state.max_steps and self.over is None:
            self.interrupted = "callback"
            control.should_save = control.should_save or capped is None
        if self.over is None and capped is not None:
            self._end(capped, by="until")
        if self.over is None:
            self._ask_gates(state, "step")
        if self.over is not None:
            self._finish(control)
        elif self._stop_agreed or (self.args.world_size == 1 and self.trainer._runner.stop_request is not None):
            self.interrupted = self.trainer._runner.stop_request
            control.should_save = control.should_training_stop = True
        if control.should_save and self._updates_done == self._epoch_updates and self.over is None:
            # Saved after the epoch's own events, so that a resume need not repeat them.
            control.should_save, self._save_deferred = False, True
        return control

    def after_epoch(self, control: TrainerControl) -> TrainerControl:
        control.should_save = control.should_save or self._save_deferred
        self._save_deferred = False
        if self.over is not None and not self.args.load_best_model_at_end:
            control.should_save = False
        return control

    def after_log(self, state: TrainerState, control: TrainerControl) -> TrainerControl:
        if self.over is None and self.steps:
            self._ask_gates(state, "log")
            if self.over is not None:
                self._finish(control)
        return control

    def after_evaluation(self, state: TrainerState, control: TrainerControl) -> None:
        """After an evaluation of all sets within the stage, before a checkpoint of the same step."""
        if self.over is None and self.steps:
            self.steering.after_evaluation(state.log_history[self.history_start :])
            self._ask_gates(state, "evaluation")
            if self.over is not None:
                self._finish(control)

    def _finish(self, control: TrainerControl) -> None:
        """The stage folder is written at once, with an evaluation; only a best-model choice needs its own save."""
        control.should_training_stop = True
        control.should_log = control.should_log or self.args.logging_strategy != "no"  # the updates since the last log
        best = self.args.load_best_model_at_end
        control.should_save = best and self.args.save_strategy != "no"
        control.should_evaluate = control.should_evaluate or best

    def _capped(self) -> str | None:
        if self.planned.exact:
            return f"{self.planned.stage.until} done" if self.steps >= self.planned.steps else None
        return f"{self.planned.stage.until} done" if self.t >= 1.0 else None

    def _ask_gates(self, state: TrainerState, on: str) -> None:
        gates = [gate for gate in self.planned.stage.gates if gate.on == on]
        if not gates:
            return
        for gate, decision in zip(gates, self.agreed(gates, self.history(state)), strict=True):
            if decision is None:
                continue
            if decision.action == "end":
                self._end(decision.reason, by=type(gate).__name__)
                return
            self.steering.do(decision, type(gate).__name__)
            if self.over is not None:
                return

    def agreed(self, gates: list[Any], history: History) -> list[Any]:
        """Rank 0's answers, on all ranks: timings and metrics with noise in them differ between ranks."""
        main = self.args.process_index == 0
        return from_main_rank([gate(history) for gate in gates] if main else None, self.args)

    def history(self, state: TrainerState, *more: dict[str, Any]) -> History:
        return History(
            step=self.steps,
            tokens=int(self.tokens),
            seconds=self.seconds,
            logs=[*state.log_history[self.history_start :], *more],
            before=self.steering.before,
            earlier=self.steering.earlier,
            entries=self.ledger.select(self.planned.name),
        )

    def note_silent_gates(self, state: TrainerState) -> None:
        """A gate whose metric was never logged could not have fired: say so."""
        history = self.history(state)
        for gate in self.planned.stage.gates:
            metric = gate.metric_read
            if gate.on == "log" and metric is not None and not history.values(metric):
                known = sorted({key for log in history.logs for key in log})
                self.note("notice", f"{metric} was never logged; there are {', '.join(known)}", by=type(gate).__name__)

    def _end(self, reason: str, *, by: str) -> None:
        self.over, self.ended_by = reason, by
        self.note("end", reason, by=by)

    def note(self, kind: str, reason: str, *, by: str = "", value: float | None = None) -> None:
        self.ledger.note(self.first_step + self.steps, self.planned.name, kind, reason, by=by, value=value)

    # ---- the update ---------------------------------------------------------------------------------------------------

    def open_update(self, batches: list[Any]) -> None:
        """Count the update's items over all ranks. The clock and a wish to stop are rank 0's, so all ranks agree."""
        assert self.objective is not None
        main, runner = self.args.process_index == 0, self.trainer._runner
        elapsed = self.seconds_before + time.monotonic() - self.began
        extras = [elapsed if main else 0.0, 1.0 if runner.stop_request else 0.0, *self.drawn.of_update(batches)]
        self.set_progress()
        learn_reduction(self.trainer, self.objective, batches)
        tokens, self.seconds, stop, *drawn = self.objective.open_update(batches, self.t, extras).tolist()
        self.drawn.add(drawn, self.steps)
        self.tokens += tokens
        self._stop_agreed = stop > 0  # a request that came since is for the next update, when all ranks know of it
        if stop and runner.stop_request is None:
            runner.stop_request = "another rank was asked to stop"

    def set_progress(self, t: float | None = None) -> None:
        """Tell the stage's transforms how far it is, or that it is done (1)."""
        for transform in self.planned.stage.transforms:
            transform.at(self.trainer.model, self.t if t is None else t)

    def watch(self, model: Any) -> dict[str, float]:
        """What a training log adds: the mean of each term, and what the stage's monitors see."""
        assert self.objective is not None
        seen = {**self.objective.drain_log(), **self.drawn.drain_log()}
        view = {
            "model": model,
            "step": self.steps,
            "t": self.t,
            "tokens": self.tokens,
            "teacher": self.trainer.stage_teacher,
        }
        for monitor in self.planned.stage.monitors:
            seen.update(monitor(view))
        return seen

    # ---- what survives a cut --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Collective: every rank has a part of the running loss."""
        trainer = self.trainer
        assert self.objective is not None
        mine = {"tr_loss": trainer._tr_loss.item(), "objective": self.objective.state_dict()}
        ranks = from_all_ranks({**mine, "evaluated": self.last_evaluation.state_dict()}, self.args)
        return {
            "stage": self.planned.name,
            "index": self.planned.index,
            "global_batch": self.planned.size.global_batch,
            "first_step": self.first_step,
            "s0": self.s0,
            "steps": self.steps,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "over": self.over,
            "ended_by": self.ended_by,
            "history_start": self.history_start,
            "before": self.before,
            "start": self.start,
            "kept": self.steering.kept,
            "ledger": self.ledger.to_list(),
            "loop": {
                "tr_loss": [rank["tr_loss"] for rank in ranks],
                "total_loss": trainer._total_loss_scalar,
                "last_logged": trainer._globalstep_last_logged,
            },
            "objective": [rank["objective"] for rank in ranks],
            "evaluated": [rank["evaluated"] for rank in ranks],
            "drawn": self.drawn.state_dict(),
            "remembered": remembered(trainer),
            "data": self.data.state_dict(self.steps),
            "parts": {key: part.state_dict() for key, part in self._remembering()},
        }

    def _remembering(self) -> list[tuple[str, Any]]:
        """Monitors and gates that have a memory."""
        stage = self.planned.stage
        parts = [(f"{kind}.{i}", p) for kind in ("monitors", "gates") for i, p in enumerate(getattr(stage, kind))]
        return [(key, part) for key, part in parts if hasattr(part, "state_dict")]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for key, part in self._remembering():
            part.load_state_dict(state["parts"][key])
        for name in ("first_step", "s0", "steps", "tokens", "over", "ended_by", "history_start", "before", "start"):
            setattr(self, name, state[name])
        self.steering.kept = state.get("kept")
        self.last_evaluation.load_state_dict(state["evaluated"][self.args.process_index])
        self.seconds_before = self.seconds = state["seconds"]
        self.drawn.load_state_dict(state.get("drawn", {}))
        remember(self.trainer, state.get("remembered", {}))
        self.data.load_state_dict(state.get("data"), self.steps)
        self.data.replay(self.steering.replayed())


def stage_folder(out: str | Path, planned: PlannedStage) -> Path:
    return Path(out) / planned.folder
