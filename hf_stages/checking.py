"""What a trainer can tell of its stages before the first step: things that would fail late, or silently do nothing."""

from __future__ import annotations

from typing import Any

from hf_stages.losses import TaskLoss
from hf_stages.losses._algebra import terms_of
from hf_stages.plan import Plan
from hf_stages.stage import Recipe, Stage
from hf_stages.stage_args import stage_args

_CAPTURED = {"loss"}


def check_stage(trainer: Any, stage: Stage) -> None:
    where = f"stage {stage.name!r}"
    own = stage_args(trainer.args, stage)
    strategy = str(getattr(own.eval_strategy, "value", own.eval_strategy))
    evaluated = stage.eval_dataset if stage.eval_dataset is not None else trainer.recipe.eval_dataset
    if strategy != "no" and evaluated is None:
        raise ValueError(
            f"{where}: eval_dataset: eval_strategy={strategy!r}, but there is none here and none in the trainer"
        )
    for index, gate in enumerate(stage.gates):
        metric = getattr(gate, "metric", None)
        if gate.on == "log" and isinstance(metric, str) and metric.startswith("eval_") and strategy == "no":
            raise ValueError(
                f"{where}: gates[{index}] {type(gate).__name__}: {metric} is never measured inside the stage, because "
                'eval_strategy is "no"; set eval_strategy="steps" and eval_steps'
            )
    for term in terms_of(stage.loss if stage.loss is not None else TaskLoss()):
        if unknown := sorted(set(term.loss.needs) - _CAPTURED):
            raise ValueError(
                f"{where}: loss {term.name}: needs {', '.join(unknown)}, which is not captured; there is {', '.join(_CAPTURED)} "
                "(a model's outputs are always there)"
            )
        if any(True for _ in getattr(term.loss, "parameters", lambda: ())()):
            raise ValueError(f"{where}: loss {term.name}: has weights of its own, which no optimizer would train")


def check_no_rebuild(recipe: Recipe, plan: Plan) -> None:
    """A model that cannot be built a second time can only go from each stage to the next."""
    reason = "this model cannot be built a second time from its config (it is quantized, or no transformers model)"
    for before, planned in zip([None, *(p.name for p in plan.stages)], plan.stages, strict=False):
        if planned.parent != before:
            raise ValueError(
                f"stage {planned.name!r}: parents: {reason}, so it can only start from the stage before it"
            )
        if isinstance(planned.stage.teacher, str):
            raise ValueError(f"stage {planned.name!r}: teacher: {reason}, so no earlier stage can teach")
