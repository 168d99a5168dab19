"""A stage's losses before its first update: adapted to the models, with a teacher that fits and sums to count in."""

from __future__ import annotations

from typing import Any

from transformers import set_seed

from hf_stages.core.randomness import seed_of
from hf_stages.core.ranks import from_main_rank
from hf_stages.data.stage_collator import prepare_collator
from hf_stages.evaluation.teacher_terms import TeacherTerms
from hf_stages.losses.objective.stage_losses import StageLosses, adapted_terms
from hf_stages.losses.objective.terms import groups_of, teacher_needs_of
from hf_stages.losses.objective.update_sums import Objective
from hf_stages.planning.collator_checks import check_teacher
from hf_stages.planning.depth_checks import check_recurrence
from hf_stages.planning.domains import own_domains
from hf_stages.planning.plan import PlannedStage
from hf_stages.planning.teacher_agreement import try_teacher
from hf_stages.teachers.live import BaseTeacher, LiveTeacher
from hf_stages.teachers.stage_teachers import start_teacher, teacher_structure
from hf_stages.training.lent_trainer import LentTrainer
from hf_stages.training.stage.stage_run import StageRun


def stage_losses(trainer: Any, planned: PlannedStage, teacher: Any) -> StageLosses:
    """Adapt the stage's losses to its models and hang in their hooks, before anything wraps or compiles the model.

    Args:
        trainer: Whose model is the student.
        planned: The stage.
        teacher: As the run's teachers give it; None where no loss asks.
    """
    model, args = trainer.model, trainer.args
    set_seed(seed_of(args.seed, planned.name, "losses") & 0xFFFFFFFF)  # projections begin alike on all ranks
    terms = adapted_terms(planned.stage, model, teacher_structure(teacher, model))
    if trainer.is_fsdp_enabled and any(term.loss.modules is not None for term in terms):
        raise ValueError(f"stage {planned.name!r}: loss: projections are not supported under FSDP; use DDP")
    if trainer.is_fsdp_enabled and any("cycles" in term.loss.needs for term in terms):
        raise ValueError(
            f"stage {planned.name!r}: loss: HaltingLoss applies the output head outside of the model's forward, which "
            "FSDP does not allow; use DDP"
        )
    ready = start_teacher(teacher, model, teacher_needs_of(terms), args.device)
    return StageLosses(terms, model, ready, defer_head=not trainer.is_fsdp_enabled)


def begin_stage(run: StageRun, lent: LentTrainer) -> None:
    """Set up the collator, the teacher and the objective, and hand Trainer's loop over to the stage."""
    trainer, losses, args = run.trainer, run.losses, run.trainer.args
    where = f"stage {run.planned.name!r}: "
    own = trainer._staged_run_plan.resolved[run.planned.name]
    check_recurrence(own_domains(own), trainer.model, where.removesuffix(": "))
    collator = prepare_collator(trainer.data_collator, trainer.processing_class, trainer.model, where)
    check_teacher(collator, losses.teacher, where)
    lent.set_teacher(losses.teacher, collator)
    if run.resumed is None:
        _check_teacher_means_the_same(trainer, losses.teacher, where)
    weights = list(trainer.model.parameters())
    losses.objective = Objective(losses.terms, args.device, args.world_size, groups_of(run.planned.stage.loss), weights)
    if run.gates.updates.guard is not None:
        losses.objective.judge_updates(forgives=run.gates.updates.guard.gate.non_finite)
    run.measured.teacher_terms = TeacherTerms(losses, trainer)
    if run.resumed is not None:
        run.objective.load_state_dict(run.resumed.state["objective"][args.process_index])
    lent.begin(run)


def _check_teacher_means_the_same(trainer: Any, teacher: Any, where: str) -> None:
    """Try a teacher on some rows, once, where the stage begins: are its outputs to be compared with the student's?"""
    if not trainer.probe_teacher or not isinstance(teacher, LiveTeacher | BaseTeacher):
        return
    if not teacher.capture.needs & {"final", "logits", "outputs"}:
        return
    where = f"{where}teacher"
    wrong = from_main_rank(try_teacher(trainer, trainer.train_dataset, teacher, where), trainer.args)
    if wrong is not None:
        raise ValueError(f"{where}: {wrong}. If it is as it should be: trainer.probe_teacher = False")
