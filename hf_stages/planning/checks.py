"""Checks of stages before the first step: things that would fail late, or silently do nothing."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import nn

from hf_stages.core.placed_errors import place_errors
from hf_stages.core.randomness import preserve_random_state
from hf_stages.core.references import teaching_stage
from hf_stages.core.stage import Recipe, Stage
from hf_stages.core.stage_context import StageContext, is_sharded
from hf_stages.gates.logged_metrics import check_logged
from hf_stages.losses.objective.by_source import OnSource
from hf_stages.losses.objective.stage_losses import adapted_terms, wants_teacher
from hf_stages.losses.objective.terms import Term, groups_of, teacher_needs_of, terms_of
from hf_stages.models.adapters import is_peft, trained_in_base
from hf_stages.models.capture import WHOLE, Capture
from hf_stages.models.model_source import ModelSource
from hf_stages.models.structure import latent_split_on_disk
from hf_stages.planning.depth_checks import check_depths
from hf_stages.planning.describe_teaching import describe_teaching
from hf_stages.planning.domains import domains_of, earlier_domains
from hf_stages.planning.gate_occasions import check_occasion
from hf_stages.planning.monitor_checks import check_monitors
from hf_stages.planning.plan import Plan, Teaching
from hf_stages.planning.resolved import ResolvedRecipe
from hf_stages.planning.stage_args import stage_args
from hf_stages.teachers.cache_reader import check_needs
from hf_stages.teachers.declared import CachedTeacher, Teacher
from hf_stages.teachers.live import BASE
from hf_stages.teachers.stage_teachers import teacher_structure

_LOGITS = frozenset({"logits", "final", "outputs"})


def check_stages(
    resolved: ResolvedRecipe, args: Any, skeletons: Mapping[str, Any], read: Any = None, *, own_loss: bool = False
) -> dict[str, Teaching]:
    """Check all that shapes can tell about the stages, and return what each learns from. No weight is read.

    ``skeletons`` are the stages' models on the meta device; ``read`` makes one of a teacher that is given by name;
    ``own_loss`` says that the trainer has a ``compute_loss_func``.
    """
    check_metrics(resolved.recipe)
    for stage in resolved.recipe.stages:
        check_teacher(resolved, stage)
        check_stage(resolved, args, stage)
        check_depths(resolved, args, stage, skeletons.get(stage.name))
        check_monitors(resolved, args, stage, skeletons.get(stage.name))
        check_exporters(stage, skeletons.get(stage.name))
        if stage.name in skeletons and (name := latent_split_on_disk(skeletons[stage.name])) is not None:
            raise ValueError(
                f"stage {stage.name!r}: {name}: transformers {transformers.__version__} would store it in pieces and "
                "not put it together again; use a newer one (5.23 stores it whole), or leave the experts out: "
                'exclude="experts"'
            )
    return check_losses(resolved, args, skeletons, read, own_loss=own_loss)


def check_metrics(recipe: Recipe) -> None:
    """Check that metrics given by name exist: the first evaluation may be an hour away."""
    holders: list[tuple[str, Any]] = [
        ("compute_metrics", recipe),
        *((f"stage {s.name!r}: compute_metrics", s) for s in recipe.stages),
    ]
    for where, holder in holders:
        check = getattr(holder.compute_metrics, "check", None)  # a part of ours; a function has none
        if check is not None:
            with place_errors(where, ValueError, OSError):
                check()


def check_exporters(stage: Stage, skeleton: Any) -> None:
    """Check that a stage's model can be exported: else the stage would train in vain."""
    for index, exporter in enumerate(stage.exporters if skeleton is not None else ()):
        check = getattr(exporter, "check", None)  # an exporter of a user's need not have it
        if check is not None:
            with place_errors(f"stage {stage.name!r}: exporters[{index}]"):
                check(skeleton)


def check_stage(resolved: ResolvedRecipe, args: Any, stage: Stage) -> None:
    """Check a stage's args against its data, its losses and its parts."""
    where = f"stage {stage.name!r}"
    context = _context(resolved, args, stage)
    own, evaluated = context.args, context.eval_sets
    if context.evaluates and evaluated is None:
        strategy = str(getattr(own.eval_strategy, "value", own.eval_strategy))
        raise ValueError(
            f"{where}: eval_dataset: eval_strategy={strategy!r}, but there is none here and none in the trainer"
        )
    if own.load_best_model_at_end and isinstance(evaluated, Mapping) and not evaluated:
        raise ValueError(
            f"{where}: load_best_model_at_end: expected something to evaluate on, got an empty eval_dataset; set it to "
            'False in this stage: args={"load_best_model_at_end": False}'
        )
    best = (own.metric_for_best_model or "").removeprefix("eval_")
    apart = {term.name for term in terms_of(stage.loss) if term.loss.uses_teacher} if stage.loss is not None else set()
    if own.load_best_model_at_end and own.greater_is_better and best in apart:
        raise ValueError(
            f"{where}: metric_for_best_model={own.metric_for_best_model!r}: it is a distance, and greater_is_better "
            "(which Trainer sets for every metric that does not end in 'loss') would keep the worst model; set "
            "greater_is_better=False"
        )
    for transform in stage.transforms:
        with place_errors(where):
            transform.check_stage(context)
    for index, gate in enumerate(stage.gates):
        with place_errors(f"{where}: gates[{index}] {type(gate).__name__}"):
            gate.check_stage(context)
            check_occasion(gate)
            check_logged(gate, stage.monitors, own, here="stage", add="monitors=[{}]")
    reads = [t.name for t in terms_of(stage.loss) if t.loss.needs & _LOGITS] if stage.loss is not None else []
    if own.use_liger_kernel and reads:
        raise ValueError(
            f"{where}: loss {reads[0]}: it reads logits, which Liger's fused loss never makes (use_liger_kernel); "
            "leave use_liger_kernel out (LogitKL is computed in chunks anyway), or use losses on hidden states and "
            "attention"
        )


def _context(resolved: ResolvedRecipe, args: Any, stage: Stage) -> StageContext:
    """Return the stage as its gates and transforms see it."""
    return StageContext(
        stage=stage,
        args=stage_args(args, stage),
        eval_sets=resolved[stage.name].eval_dataset,
        domains=tuple(domains_of(resolved, stage.name)),
        earlier=earlier_domains(resolved, stage.name),
    )


def check_teacher(resolved: ResolvedRecipe, stage: Stage) -> None:
    """Check that a stage has a teacher where its loss compares with one, and that it is not the student itself."""
    recipe, teacher = resolved.recipe, resolved[stage.name].teacher
    if isinstance(teacher, Teacher) and not isinstance(teacher.model, str):
        teacher = teacher.model
    wanted = wants_teacher(stage)
    where = f"stage {stage.name!r}: teacher"
    if wanted and teacher is None:
        raise ValueError(f"{where}: its loss compares with a teacher, but there is none here and none in the trainer")
    if stage.teacher is not None and not wanted:
        raise ValueError(f"{where}: given, but no loss of the stage uses a teacher; leave it out or add such a loss")
    if teacher is not None and teacher is recipe.model:
        raise ValueError(
            f"{where}: it is the model that is trained; expected another one, or {BASE!r} for a LoRA student's own base"
        )
    if isinstance(teacher, str) and wanted:  # the run's teacher may be a stage that others learn from
        before = [s.name for s in itertools.takewhile(lambda s: s is not stage, recipe.stages)]
        known = {BASE, *(f"stage:{name}" for name in before)}
        if teacher not in known:
            earlier = ", ".join(f"'stage:{name}'" for name in before) or "none before it"
            raise ValueError(f"{where}: expected a model, {BASE!r} or an earlier stage ({earlier}), got {teacher!r}")
    elif wanted and not isinstance(teacher, str | nn.Module | Teacher | CachedTeacher | ModelSource):
        raise ValueError(
            f"{where}: expected a model, Teacher, CachedTeacher, {BASE!r} or 'stage:<name>', got {teacher!r}"
        )
    elif isinstance(teacher, nn.Module):
        trained = {id(p) for p in recipe.model.parameters()}
        if shared := [name for name, p in teacher.named_parameters() if id(p) in trained]:
            raise ValueError(
                f"{where}: it shares weights with the student, such as {shared[0]}, and would be trained with it; load "
                "it apart (copy.deepcopy, or from_pretrained once more)"
            )


def check_losses(
    resolved: ResolvedRecipe, args: Any, skeletons: Mapping[str, Any], read: Any = None, *, own_loss: bool = False
) -> dict[str, Teaching]:
    """Adapt each stage's losses to skeletons of its models, which shows wrong layers, widths and label sets."""
    found = {}
    for stage in resolved.recipe.stages:
        if (student := skeletons.get(stage.name)) is None:
            continue
        declared, wanted = resolved[stage.name].teacher, wants_teacher(stage)
        teacher = _structure(stage, declared, student, skeletons, read) if wanted else None
        if teacher is None and wanted:
            continue
        with preserve_random_state(), torch.device("meta"):
            terms = adapted_terms(stage, student, teacher)
        _check_needs(args, stage, terms, student, own_loss)
        if isinstance(declared, CachedTeacher):
            for term in terms:
                with place_errors(f"stage {stage.name!r}: loss {term.name}", ValueError, OSError):
                    check_needs(declared, teacher_needs_of([term]))
        found[stage.name] = describe_teaching(terms, declared)
    return found


def _structure(stage: Stage, declared: Any, student: Any, skeletons: Mapping[str, Any], read: Any) -> Any:
    """Return the teacher as losses see it before it is loaded; None where an earlier stage has no skeleton."""
    if (earlier := teaching_stage(declared)) is not None:
        return skeletons.get(earlier)
    if isinstance(declared, str):
        _check_base(stage, student)
    with place_errors(f"stage {stage.name!r}: teacher", ValueError, OSError):
        source = declared if read is None else read(declared)
    called = f" {source.model!r}" if isinstance(source, Teacher) and isinstance(source.model, str) else ""
    with place_errors(f"stage {stage.name!r}: teacher{called}", ValueError, OSError):
        return teacher_structure(source, student)


def _check_base(stage: Stage, student: Any) -> None:
    where = f"stage {stage.name!r}: teacher"
    if not is_peft(student):
        raise ValueError(
            f"{where}: {BASE!r} is the model below a student's adapter, but {type(student).__name__} has no adapter; "
            "add one with AddLora, or give a model"
        )
    own = trained_in_base(student)
    if own:
        raise ValueError(
            f"{where}: {BASE!r} must stay as it is, but {own[0]} of it trains ({len(own)} weights do); freeze them, or "
            "give a model of its own as the teacher"
        )


def _check_needs(args: Any, stage: Stage, terms: Sequence[Term], student: Any, own_loss: bool) -> None:
    where = f"stage {stage.name!r}: loss"
    for term in terms:
        with place_errors(f"{where} {term.name}", ValueError, OSError):
            Capture(student, term.loss.needs).remove()
        own = sum(1 for _ in getattr(term.loss, "parameters", lambda: ())())
        if own:
            raise ValueError(
                f"{where} {term.name}: has weights of its own that no optimizer would train; put them in `modules`"
            )
    gradients = [group for group in groups_of(stage.loss) if group.by == "gradient"]
    reentrant = (stage_args(args, stage).gradient_checkpointing_kwargs or {}).get("use_reentrant")
    if gradients and (reentrant or is_sharded(args)):
        what = "reentrant activation checkpointing" if reentrant else "FSDP"
        raise ValueError(f"{where}: Balanced: gradients of single terms cannot be taken under {what}; use by='loss'")
    if (own_loss or args.label_smoothing_factor) and any(
        isinstance(t.loss, OnSource) and t.loss.inner.name == "TaskLoss" for t in terms
    ):
        raise ValueError(
            f"{where}: TaskLoss by source is computed from the logits, without label_smoothing_factor and "
            "compute_loss_func; leave these out, or use one TaskLoss for all sources"
        )
    captured = sorted(key for term in terms for key in term.loss.needs if key not in WHOLE | {"final"})
    if captured and reentrant:
        raise ValueError(
            f"{where}: {captured[0]} cannot be captured under reentrant activation checkpointing, which runs layers "
            "without a graph and would silently drop the term; set gradient_checkpointing_kwargs={'use_reentrant': "
            "False}"
        )


def check_no_rebuild(recipe: Recipe, plan: Plan) -> None:
    """Refuse branches of a model that cannot be built a second time: it can only go from each stage to the next."""
    reason = (
        "this model cannot be built a second time from its config (it is quantized, changed by hand, or no "
        "transformers model)"
    )
    for stage in recipe.stages:
        for index, transform in enumerate(stage.transforms):
            with place_errors(f"stage {stage.name!r}: transforms[{index}]", ValueError, OSError):
                transform.check(recipe.model)
    for before, planned in zip([None, *(p.name for p in plan.stages)], plan.stages, strict=False):
        if planned.parent != before:
            raise ValueError(
                f"stage {planned.name!r}: parents: {reason}, so it can only start from the stage before it"
            )
        if isinstance(planned.stage.teacher, str):
            raise ValueError(f"stage {planned.name!r}: teacher: {reason}, so no earlier stage can teach")
