"""TrainingArguments of one stage: the run's own, with an allow-list of fields that may differ."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from transformers import SchedulerType, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.training_args import OptimizerNames

from hf_stages.args_values import check_ranges, check_types
from hf_stages.nearest import did_you_mean
from hf_stages.stage import Stage

_COERCE = {
    "lr_scheduler_type": SchedulerType,
    "optim": OptimizerNames,
    "eval_strategy": IntervalStrategy,
    "logging_strategy": IntervalStrategy,
    "save_strategy": SaveStrategy,
}
_OPTIMIZATION = (
    *(
        "learning_rate",
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "warmup_steps",
        "optim",
        "optim_args",
        "weight_decay",
    ),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
)
_BATCHES = (
    *("per_device_train_batch_size", "gradient_accumulation_steps"),
    *("train_sampling_strategy", "dataloader_drop_last"),
)
_BEST = ("load_best_model_at_end", "metric_for_best_model", "greater_is_better")
_WATCHING = (
    *("per_device_eval_batch_size", "eval_strategy", "eval_steps", "eval_accumulation_steps"),
    *("logging_strategy", "logging_steps", "save_strategy", "save_steps", "save_total_limit"),
    "prediction_loss_only",
)
_LOADING = (
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor", "remove_unused_columns"),
    *("label_names", "length_column_name", "torch_empty_cache_steps"),
)
ALLOWED = frozenset({*_OPTIMIZATION, *_BATCHES, *_BEST, *_WATCHING, *_LOADING})
_ONE_RUN = "it belongs to the run as a whole; set it in the trainer's args"
_ACCELERATOR = "the accelerator is made once, for all stages; set it in the trainer's args"
_RUN_STEPS = "it counts steps from the run's start; set it in the trainer's args"
_INIT = "Trainer reads it once, when it is made; set it in the trainer's args"
_REASONS = {
    "max_steps": "the stage's `until` says how long it is",
    "num_train_epochs": "the stage's `until` says how long it is",
    "seed": "a stage's seed comes from (seed, stage name); set the run's seed in the trainer's args",
    "data_seed": "a stage's order comes from (seed, stage name); set the run's seed in the trainer's args",
    "eval_on_start": "each stage is evaluated before its first step anyway, where there is an eval_dataset",
    "eval_delay": _RUN_STEPS,
    "logging_first_step": _RUN_STEPS,
    "ignore_data_skip": "the data position is restored by arithmetic; there is nothing to skip",
    "auto_find_batch_size": "a batch size that changes by itself cannot be planned or resumed exactly",
    "label_smoothing_factor": _INIT,
    "neftune_noise_alpha": _INIT,
    "report_to": _INIT,
    **dict.fromkeys(
        ("activation_checkpointing", "gradient_checkpointing"), "it stays on once it is on; set it for all"
    ),
    **dict.fromkeys(
        ("bf16", "fp16", "torch_compile", "fsdp", "fsdp_config", "deepspeed", "accelerator_config"), _ACCELERATOR
    ),
}


def stage_args(args: TrainingArguments, stage: Stage) -> TrainingArguments:
    """The args a stage trains with. A copy with fields set: ``dataclasses.replace`` would reset accelerate's state."""
    where = f"stage {stage.name!r}: args"
    own = copy.copy(args)
    for key in stage.args:
        _check_allowed(key, where)
    check_types(stage.args, where)
    check_ranges(stage.args, where)
    for key, value in stage.args.items():
        try:
            setattr(own, key, _COERCE[key](value) if key in _COERCE else value)
        except ValueError as error:
            raise ValueError(f"{where}.{key}: {error}") from error
    own.eval_on_start = False
    if own.eval_strategy == IntervalStrategy.STEPS and not own.eval_steps:
        own.eval_steps = own.logging_steps
    if own.load_best_model_at_end and own.metric_for_best_model is None:
        own.metric_for_best_model = "loss"
    unsaid = "metric_for_best_model" in stage.args and "greater_is_better" not in stage.args
    if own.metric_for_best_model is not None and (own.greater_is_better is None or unsaid):
        own.greater_is_better = not own.metric_for_best_model.endswith("loss")
    try:
        own._validate_args()
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return own


def _check_allowed(key: str, where: str) -> None:
    if key in ALLOWED:
        return
    known = [field.name for field in dataclasses.fields(TrainingArguments)]
    if key not in known:
        raise ValueError(f"{where}.{key}: TrainingArguments has no {key!r}; {did_you_mean(key, known)}")
    raise ValueError(f"{where}.{key}: {key!r} cannot differ by stage: {_REASONS.get(key, _ONE_RUN)}")


def unsupported(args: TrainingArguments) -> str | None:
    """Why these args cannot carry a staged run, or None."""
    if args.auto_find_batch_size:
        return f"auto_find_batch_size: {_REASONS['auto_find_batch_size']}"
    if args.n_gpu > 1:
        return (
            "several GPUs in one process (nn.DataParallel) break hooks and the exact reduction of losses; "
            "start one process per GPU: torchrun --nproc-per-node"
        )
    if str(args.train_sampling_strategy) == "batch_rebalance":
        return "train_sampling_strategy='batch_rebalance' cuts batches itself, so positions cannot be computed"
    return None


def facts(args: TrainingArguments) -> dict[str, Any]:
    """What of the args decides the numbers of a stage: recorded with it, compared on resume."""
    whole = ("seed", "data_seed", "bf16", "fp16", "label_smoothing_factor", "neftune_noise_alpha")
    values = {name: getattr(args, name) for name in (*_OPTIMIZATION, *_BATCHES, *_BEST, *whole)}
    return {name: getattr(value, "value", value) for name, value in values.items()}
