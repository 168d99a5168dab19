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
from hf_stages.core.references import look_up
from hf_stages.core.sealed_folders import is_disk_error, write_sealed_folder
from hf_stages.core.stops import RunInterrupted, StageStopped
from hf_stages.data.drawing.blend import Blend
from hf_stages.data.source_column import SourceCollator
from hf_stages.data.stage_collator import for_source, prepare_collator
from hf_stages.evaluation.final_metrics import settled_metrics
from hf_stages.evaluation.teacher_terms import TeacherTerms
from hf_stages.gates.base import History
from hf_stages.losses.objective.stage_losses import StageLosses, adapted_terms
from hf_stages.losses.objective.terms import groups_of, sources_of, teacher_needs_of
from hf_stages.losses.objective.update_sums import Objective
from hf_stages.packing.pack_folder import pack
from hf_stages.planning.cautions import cautions
from hf_stages.planning.collator_checks import check_teacher
from hf_stages.planning.domains import domains_of, same_task
from hf_stages.planning.plan import Plan, PlannedStage, args_defaults, span_of
from hf_stages.planning.stage_args import stage_args
from hf_stages.planning.teacher_agreement import probe
from hf_stages.teachers.live import BaseTeacher, LiveTeacher
from hf_stages.teachers.stage_teachers import start_teacher, teacher_structure
from hf_stages.training.handover import Handover, Transition
from hf_stages.training.manifest import Manifest
from hf_stages.training.rollback_states import forget, kept_folder
from hf_stages.training.run_teachers import Teachers
from hf_stages.training.stage_folder import read_boundary, write_boundary
from hf_stages.training.stage_rates import at_rate
from hf_stages.training.stage_run import StageRun
from hf_stages.training.trainer_counters import forget as forget_counts
from hf_stages.training.trainer_counters import remember

logger = logging.get_logger(__name__)
_OWN = ("train_dataset", "eval_dataset", "data_collator", "compute_metrics", "args", "optimizer_cls_and_kwargs")


class Runner:
    """Runs a recipe with a trainer. Holds what outlives a stage: plan, ledger, manifest, the last boundary."""

    def __init__(self, trainer: Any, plan: Plan) -> None:
        self.trainer = trainer
        self.recipe = trainer.recipe
        self.args = trainer.args
        self.plan = plan
        self.out = Path(self.args.output_dir)
        self.manifest = Manifest(self.out, self.recipe, self.args, plan)
        self.ledger = Ledger()
        self.carried = TrainerState()
        self.stop_request: str | None = trainer._stop_request
        """Why the run was asked to stop; it outlives a stage that ends before it can obey."""
        self.handover = Handover(trainer, plan)
        self.teachers = Teachers(trainer, self.handover)
        self.finds_unused = getattr(trainer.accelerator.ddp_handler, "find_unused_parameters", False)
        self.own = {name: getattr(trainer, name) for name in _OWN}

    # ---- the run ----------------------------------------------------------------------------------------------------

    def run(self, resume: bool | str | None, inner: Callable[[str | None], TrainOutput]) -> TrainOutput:
        trainer, handler = self.trainer, self.trainer.callback_handler
        checkpoint, state = self.manifest.open(resume, main=self.args.should_save, barrier=self._barrier)
        forget_counts(trainer)
        if not self.manifest.done:
            self.handover.keep_initial()
        self._barrier()
        outputs: list[TrainOutput] = []
        begun = handler.begun
        handler.begun = False
        try:
            for planned in self.plan.stages:
                if planned.name in self.manifest.done:
                    self._pass(planned)
                    continue
                mine = state if state is not None and state["stage"] == planned.name else None
                outputs.append(self._stage(planned, checkpoint if mine else None, mine, inner))
                if handler.stage.interrupted is not None:
                    logger.warning(f"stage {planned.name!r}: a callback stopped training; the run can be resumed")
                    self.manifest.write("stopped", self.ledger)
                    break
                self._judge(planned.name, self.manifest.done[planned.name])
                self._stop_if_asked(planned)
            else:
                if not outputs:
                    self.handover.take_up(self.plan.stages[-1].name)
                    trainer.state = self.carried
                self.manifest.write("done", self.ledger)
        except BaseException as error:
            self._interrupted(error)
            raise
        finally:
            self._give_back(handler)
            if handler.begun:
                trainer.control = handler.on_train_end(trainer.args, trainer.state, trainer.control)
            handler.begun = begun
        return self._output(outputs)

    def _stage(
        self,
        planned: PlannedStage,
        checkpoint: str | None,
        state: dict | None,
        inner: Callable[[str | None], TrainOutput],
    ) -> TrainOutput:
        trainer = self.trainer
        parent = self._parent(planned)
        trainer.args = args = stage_args(self.own["args"], planned.stage)
        trainer._train_batch_size = args.train_batch_size  # Trainer reads it once, when it is made
        self._use_data(planned)
        change = self.handover.begin(planned, checkpoint)
        if state is None:
            self._note_cautions(planned)
            self._note_change(planned, change)
        else:
            self.ledger = Ledger.from_list(state["ledger"])
        run = StageRun(
            trainer=trainer,
            planned=planned,
            args=args,
            dataset=trainer.train_dataset,
            span=self._span(planned, args),
            s0=parent["schedule"]["position"] if parent and planned.span_root != planned.name else 0.0,
            ledger=self.ledger,
            first_step=self.manifest.steps_done,
            run_steps=sum(p.steps for p in self.plan.stages if p.name not in self.manifest.done),
            resumed=state,
            checkpoint=checkpoint,
            before=(parent or {}).get("metrics", {}),
        )
        trainer.optimizer_cls_and_kwargs = at_rate(self.own["optimizer_cls_and_kwargs"], run.span.peak)
        run.losses = losses = self._losses(planned, args)
        try:
            self._ready(planned, run, state)
            output = inner(checkpoint)
            self._after(planned, run, change)
        finally:
            losses.remove()
        return output

    def _ready(self, planned: PlannedStage, run: StageRun, state: dict | None) -> None:
        """All that stands between the stage's losses and its first update."""
        trainer, losses, args = self.trainer, run.losses, run.args
        where = f"stage {planned.name!r}: "
        trainer.data_collator = prepare_collator(trainer.data_collator, trainer.processing_class, trainer.model, where)
        check_teacher(trainer.data_collator, losses.teacher, where)
        trainer.teach_by(losses.teacher)
        if state is None:
            self._probe_teacher(planned, losses)
        groups, weights = groups_of(planned.stage.loss), list(trainer.model.parameters())
        run.objective = Objective(losses.terms, args.device, args.world_size, groups, weights)
        run.evaluated = TeacherTerms(losses, trainer)
        if state is not None:
            run.objective.load_state_dict(state["objective"][args.process_index])
        trainer.callback_handler.stage = trainer._stage = run
        trainer.loss_is_scaled_for_ga = True  # the objective divides by the items of the whole update
        self._progress(planned, run)
        self.manifest.write("running", self.ledger, running=planned.name)
        set_seed(seed_of(args.seed, planned.name) & 0xFFFFFFFF)

    def _after(self, planned: PlannedStage, run: StageRun, change: Transition) -> None:
        """Training has ended: is the stage done, or only stopped?"""
        if run.over is None and run.interrupted is None:
            run._end("a callback asked training to stop", by="callback")
            run.interrupted = "callback"
        if run.interrupted is not None and run.interrupted != "callback":
            raise RunInterrupted(
                f"stopped at step {self.trainer.state.global_step} in stage {planned.name!r}: {run.interrupted}"
            )
        if run.over is not None:  # else a callback stopped it half-way: its checkpoint is there, the stage stays open
            self._finish(planned, run, change)

    def _finish(self, planned: PlannedStage, run: StageRun, change: Transition) -> None:
        """Evaluate, judge nothing yet, and write the boundary; only then does the stage count as done."""
        trainer = self.trainer
        args = trainer.args
        if args.load_best_model_at_end and trainer.state.best_model_checkpoint and not args.save_only_model:
            # Trainer hands over the best weights; moments of other weights would not belong to them.
            trainer._load_optimizer_and_scheduler(trainer.state.best_model_checkpoint)
        run.set_progress(1.0)
        metrics = settled_metrics(self, run)
        run.losses.remove()  # the stage's folder holds the model alone
        run.note_silent_gates(trainer.state)
        trainer._stage = None  # from here on no update is counted
        moments = self.handover.keep(planned.name)
        try:
            summary = write_boundary(self, planned, run, metrics, change, moments)
        except Exception as error:
            raise _full(error, f"the stage folder {planned.folder}", self.out) from error
        summary = from_main_rank(summary, args)  # metrics with timings in them differ by rank: the written ones count
        self.manifest.finished(planned.name, summary)
        self.manifest.write("running", self.ledger)
        self.carried = trainer.state
        self._barrier()
        self._forget_kept(planned)
        self._export(planned)

    def _forget_kept(self, planned: PlannedStage) -> None:
        if self.args.should_save:
            forget(kept_folder(self.out, planned.folder))

    def _export(self, planned: PlannedStage) -> None:
        """Exports are whole or not there; where a process died before they were, the next one makes them."""
        target = self.out / f"{planned.folder}-exports"
        stage, source = planned.stage, self.out / planned.folder
        if not (stage.exporters or stage.pack_on_save) or not self.args.should_save or target.exists():
            return
        with write_sealed_folder(target) as folder:
            if stage.pack_on_save:
                pack(source, folder / "packed")
            for exporter in stage.exporters:
                exporter(source, folder)

    def _judge(self, name: str, summary: dict) -> None:
        """Expectations, on the stage's recorded metrics: a resumed run is held to them as the first one was."""
        history = History(summary["steps"], int(summary["tokens"]), summary["seconds"], [summary["metrics"]])
        for gate in self.recipe[name].gates:
            decision = gate(history) if gate.on == "end" else None
            if decision is None:
                continue
            known = [e for e in self.ledger.select(name) if e.reason == decision.reason]
            if not known:
                self.ledger.note(summary["global_step"], name, decision.action, decision.reason, by=type(gate).__name__)
            logger.warning(f"stage {name!r}: {decision.reason}")
            if decision.action == "stop":
                self.manifest.write("stopped", self.ledger)
                raise StageStopped(
                    f"stage {name!r}: {decision.reason}; the run stops before the next stage. {self.manifest.folder_of(name)} "
                    "is whole: change the expectation (or the next stages) and resume",
                    gate,
                )

    def _stop_if_asked(self, planned: PlannedStage) -> None:
        """A wish to stop that came too late for the stage's last update: the boundary is as good as a checkpoint."""
        asked = [reason for reason in from_all_ranks(self.stop_request, self.args) if reason is not None]
        if asked and planned is not self.plan.stages[-1]:
            raise RunInterrupted(
                f"stopped at step {self.trainer.state.global_step}, after stage {planned.name!r}: {asked[0]}"
            )

    def _pass(self, planned: PlannedStage) -> None:
        """A stage that an earlier process finished."""
        summary = self.manifest.done[planned.name]
        self.ledger = Ledger.from_list(summary["ledger"])
        self._forget_kept(planned)
        self._export(planned)
        self._judge(planned.name, summary)
        self.carried = read_boundary(self.out / planned.folder).state
        remember(self.trainer, summary.get("remembered", {}))

    # ---- what a stage works with --------------------------------------------------------------------------------------

    def _use_data(self, planned: PlannedStage) -> None:
        trainer, stage = self.trainer, planned.stage
        trainer.train_dataset = dataset = self._dataset(stage)
        resolved = self.plan.resolved
        evaluated = stage.eval_dataset if stage.eval_dataset is not None else self.own["eval_dataset"]
        where = f"stage {stage.name!r}: eval_dataset"
        if isinstance(evaluated, dict):
            if any(
                gate.on == "evaluation" for gate in stage.gates
            ):  # which are asked about earlier domains within the stage
                seen = [d for d in domains_of(resolved, stage.name).values() if same_task(resolved, stage.name, d)]
                theirs = {domain.name: trainer.eval_data(domain.dataset, domain.stage or stage) for domain in seen}
                evaluated = {**theirs, **evaluated}
            sets = {key: look_up(value, resolved.sources, where) for key, value in evaluated.items()}
            trainer.eval_dataset = {key: trainer.eval_data(value, stage) for key, value in sets.items()}
        else:
            trainer.eval_dataset = trainer.eval_data(look_up(evaluated, resolved.sources, where), stage)
        for name in ("data_collator", "compute_metrics"):
            own = getattr(stage, name)
            setattr(trainer, name, own if own is not None else self.own[name])
        if isinstance(stage.train_dataset, str):
            trainer.data_collator = for_source(trainer.data_collator, stage.train_dataset)
        sources, drawn = sources_of(stage.loss), dataset.names if isinstance(dataset, Blend) else ()
        if sources or drawn:
            trainer.data_collator = SourceCollator(trainer.data_collator, sources, drawn)
        trainer.__dict__.pop("_eval_dataloaders", None)  # persistent workers hold the stage before's data

    def _dataset(self, stage: Any) -> Any:
        """The stage's data, prepared as the trainer's own was (TRL): a curriculum's sources one by one."""
        blend = self.plan[stage.name].blend
        return self.trainer.train_data(self.plan.resolved[stage.name].dataset if blend is None else blend, stage)

    def _span(self, planned: PlannedStage, args: Any) -> Any:
        """The learning-rate span with the rate really reached before it (a gate may have ended the parent early)."""
        root = self.plan[planned.span_root]
        parent = self.manifest.done.get(root.parent) if root.parent else None
        own = stage_args(self.own["args"], root.stage)
        total = self.plan.spans[root.name].total
        return span_of(root.stage, args_defaults(own), total, parent["lr_end"] if parent else None)

    def _losses(self, planned: PlannedStage, args: Any) -> StageLosses:
        """Adapt the stage's losses to its models and hang in their hooks, before anything wraps or compiles the model."""
        model = self.trainer.model
        source = self.teachers.of(planned)
        set_seed(seed_of(args.seed, planned.name, "losses") & 0xFFFFFFFF)  # projections begin alike on all ranks
        terms = adapted_terms(planned.stage, model, teacher_structure(source, model))
        if self.trainer.is_fsdp_enabled and any(term.loss.modules is not None for term in terms):
            raise ValueError(f"stage {planned.name!r}: loss: projections are not supported under FSDP; use DDP")
        teacher = start_teacher(source, model, teacher_needs_of(terms), args.device)
        losses = StageLosses(terms, model, teacher, defer_head=not self.trainer.is_fsdp_enabled)
        ddp = self.trainer.accelerator.ddp_handler  # made once, from the run's args; read at each wrapping
        if ddp is not None:
            ddp.find_unused_parameters = self.finds_unused or losses.partial
        return losses

    def _probe_teacher(self, planned: PlannedStage, losses: StageLosses) -> None:
        """A teacher whose answers are compared must mean the same by them. Once, where the stage begins."""
        teacher, trainer = losses.teacher, self.trainer
        if not trainer.probe_teacher or not isinstance(teacher, LiveTeacher | BaseTeacher):
            return
        if not teacher.capture.needs & {"final", "logits", "outputs"}:
            return
        where = f"stage {planned.name!r}: teacher"
        wrong = from_main_rank(probe(trainer, trainer.train_dataset, teacher, where), self.args)
        if wrong is not None:
            raise ValueError(f"{where}: {wrong}. If it is as it should be: trainer.probe_teacher = False")

    # ---- small parts ----------------------------------------------------------------------------------------------------

    def _parent(self, planned: PlannedStage) -> dict | None:
        return self.manifest.done[planned.parent] if planned.parent is not None else None

    def _note_cautions(self, planned: PlannedStage) -> None:
        for text in cautions(self.plan).get(planned.name, ()):
            self.ledger.note(self.manifest.steps_done, planned.name, "notice", text, by="plan")
            logger.warning(f"stage {planned.name!r}: {text}")

    def _note_change(self, planned: PlannedStage, change: Transition) -> None:
        for name, deviation in change.deviations.items():
            if deviation is not None and deviation > 1e-3:
                self.ledger.note(
                    self.manifest.steps_done, planned.name, "alert", f"{name} claims to keep the model's function, but its "
                    f"outputs moved by {deviation:.2e} (relative)", by=name,
                )  # fmt: skip

    def _progress(self, planned: PlannedStage, run: StageRun) -> None:
        for callback in self.trainer.callback_handler.callbacks:
            if hasattr(callback, "enter"):
                callback.enter(planned.name, planned.index, len(self.plan.stages), run.first_step, planned.steps)

    def _barrier(self) -> None:
        if self.args.world_size > 1:
            self.trainer.accelerator.wait_for_everyone()

    def _interrupted(self, error: BaseException) -> None:
        if isinstance(error, StageStopped):
            return
        try:
            run = self.trainer._stage
            self.manifest.write("interrupted", self.ledger, running=run.planned.name if run is not None else None)
        except OSError:
            logger.warning(f"{self.out}: the manifest could not be updated; resuming does not need it to be")

    def _give_back(self, handler: Any) -> None:
        trainer = self.trainer
        for name, value in self.own.items():
            setattr(trainer, name, value)
        if trainer.accelerator.ddp_handler is not None:
            trainer.accelerator.ddp_handler.find_unused_parameters = self.finds_unused
        trainer._stage = handler.stage = None
        trainer._train_batch_size = trainer.args.train_batch_size
        trainer._stop_request = None
        trainer.forget_batch()
        trainer.teach_by(None)
        trainer.__dict__.pop("loss_is_scaled_for_ga", None)

    def _output(self, outputs: list[TrainOutput]) -> TrainOutput:
        state = self.trainer.state
        if not outputs:
            losses = [log["train_loss"] for log in state.log_history if "train_loss" in log]
            return TrainOutput(state.global_step, losses[-1] if losses else 0.0, {})
        runtime = sum(o.metrics.get("train_runtime", 0.0) for o in outputs)
        return TrainOutput(
            state.global_step, outputs[-1].training_loss, {**outputs[-1].metrics, "train_runtime": runtime}
        )


def _full(error: Exception, what: str, out: Path) -> Exception:
    if not is_disk_error(error):
        return error
    return OSError(
        f"{what} could not be written ({error}); every folder saved before it is whole. Free space on {out} and resume with "
        "resume_from_checkpoint=True"
    )
