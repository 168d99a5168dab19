"""The run: stages in order, one inner ``train()`` each, a folder at every boundary.

Trainer's own ``train()`` sets up everything a model needs (wrapper, optimizer, checkpointing, compilation). Running
it anew for each stage is what makes structural transforms, DDP and FSDP right without touching Trainer's loop.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import set_seed
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from hf_stages.core.ledger import Ledger
from hf_stages.core.randomness import seed_of
from hf_stages.core.ranks import from_all_ranks, from_main_rank
from hf_stages.core.sealed_folders import is_disk_error
from hf_stages.core.stops import RunInterrupted, StageStopped
from hf_stages.evaluation.final_metrics import final_metrics, metrics_of_other_domains
from hf_stages.gates.notify.telling import Notifications
from hf_stages.planning.cautions import cautions
from hf_stages.planning.plan import Plan, PlannedStage, schedule_defaults, span_of
from hf_stages.planning.stage_args import stage_args
from hf_stages.reports.finished_stage import FinishedStage
from hf_stages.schedules.base import Span
from hf_stages.training.handover import Handover, Transition
from hf_stages.training.lent_trainer import LentTrainer
from hf_stages.training.manifest import Manifest
from hf_stages.training.run_teachers import Teachers
from hf_stages.training.stage.cut_stage import CutStage
from hf_stages.training.stage.rollback_states import remove_states, rollback_folder
from hf_stages.training.stage.stage_inputs import stage_inputs
from hf_stages.training.stage.stage_run import StageRun
from hf_stages.training.stage.stage_start import begin_stage, stage_losses
from hf_stages.training.stage_folder import read_trainer_state, write_exports, write_stage_folder
from hf_stages.training.stage_summary import stage_summary
from hf_stages.training.trainer_counters import reset_counters, restore_counters

logger = logging.get_logger(__name__)
_Train = Callable[[str | None], TrainOutput]
"""Trainer's own ``train()``, from a checkpoint or from the stage's start."""


class Runner:
    """Runs a recipe with a trainer. Holds what outlives a stage: the plan, the ledger, the manifest, the last state.

    Args:
        trainer: The ``StagedTrainer``, with its recipe.
        plan: The recipe in absolute numbers.
    """

    def __init__(self, trainer: Any, plan: Plan) -> None:
        self.trainer, self.args, self.plan = trainer, trainer.args, plan
        self.manifest = Manifest(Path(self.args.output_dir), trainer.recipe, self.args, plan)
        self.ledger = Ledger(listener=self._notifications())
        self.carried = TrainerState()
        """What Trainer knew when the last stage ended."""
        self.handover = Handover(trainer, plan)
        self.teachers = Teachers(trainer, self.handover)
        self.lent = LentTrainer(trainer)

    # ---- the run ----------------------------------------------------------------------------------------------------

    def run(self, resume: bool | str | None, train: _Train) -> TrainOutput:
        """Train every stage that is not done, and give back what Trainer's ``train()`` would of the whole run."""
        cut = self.manifest.open(resume, main=self.args.should_save, barrier=self._barrier)
        reset_counters(self.trainer)
        if not self.manifest.done:
            self.handover.keep_initial()
        self._barrier()
        outputs: list[TrainOutput] = []
        with self.lent.borrowed():
            try:
                self._run_stages(cut, train, outputs)
            except BaseException as error:
                self._note_interruption(error)
                raise
        return self._output(outputs)

    def _run_stages(self, cut: CutStage | None, train: _Train, outputs: list[TrainOutput]) -> None:
        for planned in self.plan.stages:
            if planned.name in self.manifest.done:
                self._take_over_finished(planned)
                continue
            resumed = cut if cut is not None and cut.state["stage"] == planned.name else None
            run, change = self._start(planned, resumed)
            try:
                begin_stage(run, self.lent)
                self._announce(run)
                outputs.append(train(None if resumed is None else resumed.checkpoint))
                self._end(planned, run, change)
            finally:
                run.losses.remove()
            if run.stopping.interrupted is not None:
                logger.warning(f"stage {planned.name!r}: a callback stopped training; the run can be resumed")
                self.manifest.write("stopped", self.ledger)
                return
            if run.stopping.stopped is not None:
                more = "; resume to go on with the next stage" if planned is not self.plan.stages[-1] else ""
                _stop_by_gate(self, run, f"{planned.folder} is whole{more}")
            self._check_expectations(self.manifest.done[planned.name])
            self._stop_if_asked(planned)
        if not outputs:
            self.handover.restore(self.plan.stages[-1].name)
            self.trainer.state = self.carried
        self.manifest.write("done", self.ledger)

    # ---- a stage's start --------------------------------------------------------------------------------------------

    def _start(self, planned: PlannedStage, resumed: CutStage | None) -> tuple[StageRun, Transition]:
        """Give the trainer the stage's arguments, data, model and losses."""
        trainer, lent = self.trainer, self.lent
        parent = self.manifest.done[planned.parent] if planned.parent is not None else None
        lent.set_args(stage_args(lent.own.args, planned.stage))
        lent.set_inputs(stage_inputs(trainer, planned, self.plan.resolved, lent.own))
        change = self.handover.begin(planned, None if resumed is None else resumed.checkpoint)
        if resumed is None:
            self._note_start(planned, change)
        else:
            self.ledger = self.ledger.followed_by(Ledger.from_list(resumed.state["ledger"]))
        run = StageRun(
            trainer,
            planned,
            self.plan,
            span=self._span(planned),
            start=parent.schedule_position if parent and planned.span_root != planned.name else 0.0,
            ledger=self.ledger,
            first_step=self.manifest.steps_done,
            run_steps=sum(p.steps for p in self.plan.stages if p.name not in self.manifest.done),
            before=parent.metrics if parent else {},
            resumed=resumed,
        )
        lent.set_learning_rate(run.rate.span.peak)
        run.losses = stage_losses(trainer, planned, self.teachers.for_stage(planned))
        lent.set_unused_parameters(run.losses.partial)
        return run, change

    def _span(self, planned: PlannedStage) -> Span:
        """Compute the learning-rate span from the rate really reached: a gate may have ended the parent early."""
        root = self.plan[planned.span_root]
        parent = self.manifest.done.get(root.parent) if root.parent else None
        own = stage_args(self.lent.own.args, root.stage)
        total = self.plan.spans[root.name].total
        return span_of(root.stage, schedule_defaults(own), total, parent.learning_rate if parent else None)

    def _note_start(self, planned: PlannedStage, change: Transition) -> None:
        """Note what the plan warns of, and transforms that moved the model's outputs though they claim not to."""
        step = self.manifest.steps_done
        for text in cautions(self.plan).get(planned.name, ()):
            self.ledger.note(step, planned.name, "notice", text, by="plan")
            logger.warning(f"stage {planned.name!r}: {text}")
        for name, deviation in change.deviations.items():
            if deviation is not None and deviation > 1e-3:
                moved = f"outputs moved by {deviation:.2e} (relative)"
                text = f"{name} claims to keep the model's function, but its {moved}"
                self.ledger.note(step, planned.name, "alert", text, by=name)

    def _announce(self, run: StageRun) -> None:
        """Tell progress bars and ``run.json`` that the stage begins."""
        planned = run.planned
        for callback in self.trainer.callback_handler.callbacks:
            if hasattr(callback, "enter"):
                count = len(self.plan.stages)
                callback.enter(planned.name, planned.index, count, run.progress.first_step, planned.steps)
        self.manifest.write("running", self.ledger, running=planned.name)
        set_seed(seed_of(self.trainer.args.seed, planned.name) & 0xFFFFFFFF)

    # ---- a stage's end ----------------------------------------------------------------------------------------------

    def _end(self, planned: PlannedStage, run: StageRun, change: Transition) -> None:
        """Tell whether the stage is done or only stopped, once Trainer's loop has ended."""
        stopping = run.stopping
        if stopping.over is None and stopping.stopped is not None:
            step = self.trainer.state.global_step
            _stop_by_gate(self, run, f"a checkpoint of step {step} was written; resume to go on from it")
        if stopping.over is None and stopping.interrupted is None:
            stopping.end("a callback asked training to stop", by="callback")
            stopping.interrupted = "callback"
        if stopping.interrupted is not None and stopping.interrupted != "callback":
            step = self.trainer.state.global_step
            raise RunInterrupted(f"stopped at step {step} in stage {planned.name!r}: {stopping.interrupted}")
        if (
            stopping.over is not None
        ):  # else a callback stopped it half-way: its checkpoint is there, the stage stays open
            self._finish(planned, run, change)

    def _finish(self, planned: PlannedStage, run: StageRun, change: Transition) -> None:
        """Evaluate the model and write the folder; only then does the stage count as done."""
        trainer, folder = self.trainer, self.manifest.folder_of(planned.name)
        metrics = self._measure(run)
        moments = self.handover.keep_result(planned.name)
        transforms = self.handover.transforms_up_to(planned.name)
        try:
            summary = stage_summary(
                run, self.manifest, metrics=metrics, transforms=transforms, deviations=change.deviations
            )
            # Metrics with timings in them differ by rank: those that are written count.
            finished = FinishedStage(planned, folder, from_main_rank(summary, trainer.args))
            write_stage_folder(finished, trainer, moments, run.rate.span.peak)
        except Exception as error:
            raise _with_advice(error, f"the stage folder {planned.folder}", folder.parent) from error
        self.manifest.done[planned.name] = finished
        self.manifest.write("running", self.ledger)
        self.carried = trainer.state
        self._barrier()
        self._clean_up_and_export(finished)

    def _measure(self, run: StageRun) -> dict[str, float]:
        """Measure the weights that the stage ends with. From here on the model is alone, and no update is counted."""
        trainer, args = self.trainer, self.trainer.args
        if args.load_best_model_at_end and trainer.state.best_model_checkpoint and not args.save_only_model:
            # Trainer hands over the best weights; moments of other weights would not belong to them.
            trainer._load_optimizer_and_scheduler(trainer.state.best_model_checkpoint)
        run.gates.updates.hear()
        run.set_progress(1.0)
        if run.gates.ask_detectors_at_end(trainer.state):  # by the last log; what it went back to is measured now
            run.set_progress(1.0)
        metrics = final_metrics(trainer, run.measured)
        logs = run.measured.logs(trainer.state)
        if run.gates.decide_at_end([*logs, {**metrics, "step": trainer.state.global_step}]):
            metrics = final_metrics(trainer, run.measured)  # of the weights that a gate went back to
        if run.gates.ask_detectors_at_end(trainer.state):
            run.set_progress(1.0)
            metrics = final_metrics(trainer, run.measured)
        metrics |= metrics_of_other_domains(trainer, run.planned.stage, self.plan.resolved)
        run.losses.remove()
        run.gates.note_silent(run.measured.logs(trainer.state))
        self.lent.end()
        return metrics

    def _take_over_finished(self, planned: PlannedStage) -> None:
        """Take over a stage that an earlier process finished."""
        finished = self.manifest.done[planned.name]
        self.ledger = self.ledger.followed_by(finished.ledger)
        self._clean_up_and_export(finished)
        self._check_expectations(finished)
        self.carried = read_trainer_state(finished.folder)
        restore_counters(self.trainer, finished.summary.get("remembered", {}))

    def _clean_up_and_export(self, finished: FinishedStage) -> None:
        """Remove what the stage no longer needs beside its folder, and write its exports."""
        if self.args.should_save:
            remove_states(rollback_folder(finished.folder.parent, finished.planned.folder))
            write_exports(finished)

    def _check_expectations(self, finished: FinishedStage) -> None:
        """Ask expectations, on the stage's recorded metrics: a resumed run is held to them as the first one was."""
        name, history = finished.name, finished.history
        for gate in self.trainer.recipe[name].gates:
            decision = gate(history) if gate.on == "end" else None
            if decision is None:
                continue
            if not any(entry.reason == decision.reason for entry in self.ledger.select(name)):
                by = type(gate).__name__
                self.ledger.note(finished.global_step, name, decision.action, decision.reason, by=by)
            logger.warning(f"stage {name!r}: {decision.reason}")
            if decision.action == "stop":
                self.manifest.write("stopped", self.ledger)
                raise StageStopped(
                    f"stage {name!r}: {decision.reason}; the run stops before the next stage. {finished.folder} is "
                    "whole: change the expectation (or the next stages) and resume",
                    gate,
                )

    # ---- the run's end ----------------------------------------------------------------------------------------------

    def _stop_if_asked(self, planned: PlannedStage) -> None:
        """Obey a request to stop that came after the stage's last update: its folder is as good as a checkpoint."""
        reasons = from_all_ranks(self.trainer._stop_request.reason, self.args)
        asked = next((reason for reason in reasons if reason is not None), None)
        if asked is not None and planned is not self.plan.stages[-1]:
            step = self.trainer.state.global_step
            raise RunInterrupted(f"stopped at step {step}, after stage {planned.name!r}: {asked}")

    def _note_interruption(self, error: BaseException) -> None:
        if isinstance(error, StageStopped):
            return
        try:
            run = self.trainer._stage
            self.manifest.write("interrupted", self.ledger, running=run.planned.name if run is not None else None)
        except OSError:
            folder = self.manifest.out
            logger.warning(f"{folder}: the manifest could not be updated; resuming does not need it to be")

    def _notifications(self) -> Notifications | None:
        """Make the listener that tells others what the gates decide; the main process has one, if any has."""
        told = self.trainer.recipe.notify
        if not told or self.args.process_index != 0:
            return None
        notifications = Notifications(told, run=self.manifest.out.name or str(self.manifest.out))
        notifications.check()
        return notifications

    def _barrier(self) -> None:
        if self.args.world_size > 1:
            self.trainer.accelerator.wait_for_everyone()

    def _output(self, outputs: list[TrainOutput]) -> TrainOutput:
        state = self.trainer.state
        if not outputs:
            losses = [log["train_loss"] for log in state.log_history if "train_loss" in log]
            return TrainOutput(state.global_step, losses[-1] if losses else 0.0, {})
        runtime = sum(o.metrics.get("train_runtime", 0.0) for o in outputs)
        return TrainOutput(
            state.global_step, outputs[-1].training_loss, {**outputs[-1].metrics, "train_runtime": runtime}
        )


def _with_advice(error: Exception, what: str, out: Path) -> Exception:
    """Say what to do where the disk is full; other errors stay as they are."""
    if not is_disk_error(error):
        return error
    return OSError(
        f"{what} could not be written ({error}); every folder saved before it is whole. Free space on {out} and resume "
        "with resume_from_checkpoint=True"
    )


def _stop_by_gate(runner: Runner, run: StageRun, advice: str) -> None:
    """Stop a run because a gate said so, behind a checkpoint or a stage's folder."""
    name = run.planned.name
    runner.manifest.write("stopped", runner.ledger, running=name if name not in runner.manifest.done else None)
    raise StageStopped(f"stage {name!r}: {run.stopping.stopped}; {advice}")
