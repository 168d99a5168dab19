"""TrainingArguments that may differ by stage, and the reasons why others may not."""

from __future__ import annotations

OPTIMIZATION = (
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
BATCHES = (
    *("per_device_train_batch_size", "gradient_accumulation_steps"),
    *("train_sampling_strategy", "dataloader_drop_last"),
)
BEST = ("load_best_model_at_end", "metric_for_best_model", "greater_is_better")
WATCHING = (
    *("per_device_eval_batch_size", "eval_strategy", "eval_steps", "eval_accumulation_steps"),
    *("logging_strategy", "logging_steps", "save_strategy", "save_steps", "save_total_limit"),
    "prediction_loss_only",
)
LOADING = (
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor", "remove_unused_columns"),
    *("label_names", "length_column_name", "torch_empty_cache_steps"),
)
KINDS = {
    "optimization": OPTIMIZATION,
    "batches": BATCHES,
    "the best state": BEST,
    "evaluation, logs and checkpoints": WATCHING,
    "loading data": LOADING,
}
ALLOWED = frozenset(name for names in KINDS.values() for name in names)
ONE_RUN = "it belongs to the run as a whole; set it in the trainer's args"
_ACCELERATOR = "the accelerator is made once, for all stages; set it in the trainer's args"
_RUN_STEPS = "it counts steps from the run's start; set it in the trainer's args"
_INIT = "Trainer reads it once, when it is made; set it in the trainer's args"
REASONS = {
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
