"""A stage's data, collator and metrics: its own, or those that the trainer was made with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_stages.core.references import look_up
from hf_stages.core.stage import Stage, own_or_shared
from hf_stages.data.drawing.blend import Blend
from hf_stages.data.source_column import SourceCollator
from hf_stages.data.stage_collator import for_source
from hf_stages.losses.objective.terms import sources_of
from hf_stages.planning.domains import domains_of, same_task
from hf_stages.planning.plan import PlannedStage
from hf_stages.planning.resolved import ResolvedRecipe


@dataclass(frozen=True)
class StageInputs:
    """Holds what a trainer is given for one stage, by the names of Trainer's arguments."""

    train_dataset: Any
    eval_dataset: Any
    data_collator: Any
    compute_metrics: Any


def stage_inputs(trainer: Any, planned: PlannedStage, resolved: ResolvedRecipe, own: Any) -> StageInputs:
    """Find a stage's inputs, prepared as the trainer's own were (TRL); of a curriculum each source.

    Args:
        trainer: Which already has the stage's arguments: hooks that prepare data read them.
        planned: The stage, with the sources that its plan has bound.
        resolved: The datasets of all stages.
        own: The trainer's ``OwnSettings``, for what the stage does not name.
    """
    stage = planned.stage
    dataset = trainer.train_data(resolved[stage.name].dataset if planned.blend is None else planned.blend, stage)
    return StageInputs(
        train_dataset=dataset,
        eval_dataset=_eval_dataset(trainer, stage, resolved, own),
        data_collator=_collator(stage, dataset, own),
        compute_metrics=own_or_shared(stage, "compute_metrics", own),
    )


def _eval_dataset(trainer: Any, stage: Stage, resolved: ResolvedRecipe, own: Any) -> Any:
    where = f"stage {stage.name!r}: eval_dataset"
    declared = own_or_shared(stage, "eval_dataset", own)
    if not isinstance(declared, dict):
        return trainer.eval_data(look_up(declared, resolved.sources, where), stage)
    if any(gate.on == "evaluation" for gate in stage.gates):  # which are asked about earlier domains within the stage
        seen = [
            domain for domain in domains_of(resolved, stage.name).values() if same_task(resolved, stage.name, domain)
        ]
        theirs = {domain.name: trainer.eval_data(domain.dataset, domain.stage or stage) for domain in seen}
        declared = {**theirs, **declared}
    sets = {key: look_up(value, resolved.sources, where) for key, value in declared.items()}
    return {key: trainer.eval_data(value, stage) for key, value in sets.items()}


def _collator(stage: Stage, dataset: Any, own: Any) -> Any:
    collator = own_or_shared(stage, "data_collator", own)
    if isinstance(stage.train_dataset, str):
        collator = for_source(collator, stage.train_dataset)
    sources, drawn = sources_of(stage.loss), dataset.names if isinstance(dataset, Blend) else ()
    return SourceCollator(collator, sources, drawn) if sources or drawn else collator
