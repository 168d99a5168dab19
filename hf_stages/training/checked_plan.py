"""A plan that was checked: whatever would stop a run later is raised before its first step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers import TrainingArguments

from hf_stages.losses.objective.micro_batch_loss import overrides_compute_loss
from hf_stages.losses.objective.stage_losses import wants_teacher
from hf_stages.models.method_patches import check_rebuilt_model
from hf_stages.packing.checks import check_packed_stages
from hf_stages.planning.checks import check_no_rebuild, check_stages
from hf_stages.planning.collator_checks import check_collators
from hf_stages.planning.domains import evaluation_sets
from hf_stages.planning.measure_data import plan_for
from hf_stages.planning.model_shapes import build_skeletons
from hf_stages.planning.plan import Plan
from hf_stages.planning.raw_rows import check_labels, check_rows, prepares_own_rows
from hf_stages.planning.rollback_checks import check_rollbacks
from hf_stages.planning.teacher_agreement import check_teacher_tokenizers
from hf_stages.training.run_teachers import check_declared


def check_plan(
    plan: Plan,
    args: TrainingArguments,
    models: Mapping[str, Any],
    tokenizer: Any,
    *,
    structure: Callable[[Any], Any] | None = None,
    own_rows: bool = False,
    own_labels: bool = False,
    own_loss: bool = False,
) -> Plan:
    """Check a plan against the stages' models in shape alone, and add what each stage is taught.

    Args:
        plan: A plan with its resolved recipe.
        args: The run's.
        models: The stages' models on the meta device, by name.
        tokenizer: The run's processing class.
        structure: Makes a model on the meta device of a teacher that is given by its name.
        own_rows: The trainer has ways of its own from rows to batches, so rows are not judged.
        own_labels: The trainer computes its loss itself, so labels are not judged.
        own_loss: The trainer has a ``compute_loss_func``.
    """
    resolved = plan.resolved
    check_rollbacks(plan)
    check_collators(resolved, tokenizer)
    check_teacher_tokenizers(resolved.recipe, tokenizer)
    if not own_rows:
        check_rows(resolved, args, models)
        if not own_labels:
            check_labels(resolved, args, models)
    check_packed_stages(resolved.recipe, models)
    return plan.with_teaching(check_stages(resolved, args, models, structure, own_loss=own_loss))


def plan_trainer(trainer: Any) -> Plan:
    """Plan a trainer's run. What was planned before the trainer was made is taken over while it holds."""
    kept = trainer._staged_plan_at_hand
    holds = kept is not None and kept.holds_for(trainer.recipe, trainer.args, trainer.processing_class)
    takes_over = holds and not trainer.prepares and trainer.compute_loss_func is None
    plan = kept.plan if takes_over else _plan_anew(trainer)
    check_rebuilt_model(trainer, plan)
    if not trainer.blueprint.buildable:
        check_no_rebuild(trainer.recipe, plan)
    for stage in plan.resolved:
        if wants_teacher(stage.stage):
            check_declared(trainer, stage, plan.resolved)
    return plan


def _plan_anew(trainer: Any) -> Plan:
    plan = plan_for(trainer.recipe, trainer.args, trainer.train_data if trainer.prepares else None)
    for stage, dataset in evaluation_sets(plan.resolved) if trainer.prepares else ():
        trainer.eval_data(dataset, stage.stage)
    blueprint = trainer.blueprint
    own_loss = trainer.compute_loss_func is not None
    return check_plan(
        plan,
        trainer.args,
        build_skeletons(trainer.recipe, blueprint.build("meta")) if blueprint.buildable else {},
        trainer.processing_class,
        own_rows=prepares_own_rows(trainer),
        own_labels=own_loss or overrides_compute_loss(trainer),
        own_loss=own_loss,
    )
