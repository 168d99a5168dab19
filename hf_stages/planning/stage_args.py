"""The TrainingArguments of one stage: the run's, with fields of an allow-list that the stage sets itself."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from transformers import SchedulerType, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.training_args import OptimizerNames

from hf_stages.core.did_you_mean import did_you_mean
from hf_stages.core.placed_errors import place_errors
from hf_stages.core.stage import Stage
from hf_stages.planning.args_by_stage import ALLOWED, BATCHES, BEST, ONE_RUN, OPTIMIZATION, REASONS
from hf_stages.planning.args_values import check_ranges, check_types

_COERCE = {
    "lr_scheduler_type": SchedulerType,
    "optim": OptimizerNames,
    "eval_strategy": IntervalStrategy,
    "logging_strategy": IntervalStrategy,
    "save_strategy": SaveStrategy,
}


def stage_args(args: TrainingArguments, stage: Stage) -> TrainingArguments:
    """Return the args that a stage trains with.

    They are a copy whose fields are set: ``dataclasses.replace`` would reset accelerate's state.
    """
    where = f"stage {stage.name!r}: args"
    own = copy.copy(args)
    for key in stage.args:
        _check_allowed(key, where)
    check_types(stage.args, where)
    check_ranges(stage.args, where)
    for key, value in stage.args.items():
        with place_errors(f"{where}.{key}"):
            setattr(own, key, _COERCE[key](value) if key in _COERCE else value)
    own.eval_on_start = False
    if own.eval_strategy == IntervalStrategy.STEPS and not own.eval_steps:
        own.eval_steps = own.logging_steps
    if own.load_best_model_at_end and own.metric_for_best_model is None:
        own.metric_for_best_model = "loss"
    left_open = "metric_for_best_model" in stage.args and "greater_is_better" not in stage.args
    if own.metric_for_best_model is not None and (own.greater_is_better is None or left_open):
        own.greater_is_better = not own.metric_for_best_model.endswith("loss")
    with place_errors(where):
        own._validate_args()
    return own


def _check_allowed(key: str, where: str) -> None:
    if key in ALLOWED:
        return
    known = [field.name for field in dataclasses.fields(TrainingArguments)]
    if key not in known:
        raise ValueError(f"{where}.{key}: TrainingArguments has no {key!r}; {did_you_mean(key, known)}")
    raise ValueError(f"{where}.{key}: {key!r} cannot differ by stage: {REASONS.get(key, ONE_RUN)}")


def unsupported_args(args: TrainingArguments) -> str | None:
    """Return why a run with stages cannot have these args; None where it can."""
    if args.auto_find_batch_size:
        return f"auto_find_batch_size: {REASONS['auto_find_batch_size']}"
    if args.n_gpu > 1:
        return (
            "several GPUs in one process (nn.DataParallel) break hooks and the exact reduction of losses; "
            "start one process per GPU: torchrun --nproc-per-node"
        )
    if str(args.train_sampling_strategy) == "batch_rebalance":
        return "train_sampling_strategy='batch_rebalance' cuts batches itself, so positions cannot be computed"
    return None


def recorded_args(args: TrainingArguments) -> dict[str, Any]:
    """Return the args that decide a stage's numbers: they are recorded with it and compared on resume."""
    whole = ("seed", "data_seed", "bf16", "fp16", "label_smoothing_factor", "neftune_noise_alpha")
    values = {name: getattr(args, name) for name in (*OPTIMIZATION, *BATCHES, *BEST, *whole)}
    return {name: getattr(value, "value", value) for name, value in values.items()}
