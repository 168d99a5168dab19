"""Values of TrainingArguments of the wrong type or out of range are refused when they are read."""

from __future__ import annotations

import dataclasses
import math

import pytest
from transformers import SchedulerType, TrainingArguments
from transformers.training_args import OptimizerNames

from hf_stages import Stage, StagedTrainer
from hf_stages.planning.args_values import check_ranges, check_types
from hf_stages.planning.stage_args import stage_args
from hf_stages.training.from_recipe import training_arguments
from tests.support import tiny

WRONG = [
    ({"learning_rate": "fast"}, "learning_rate: expected a number, got 'fast'"),
    ({"learning_rate": None}, "learning_rate: expected a number, got None"),
    ({"weight_decay": "no"}, "weight_decay: expected a number, got 'no'"),
    ({"per_device_train_batch_size": 0}, "per_device_train_batch_size: expected a number of at least 1, got 0"),
    ({"per_device_train_batch_size": 2.5}, "per_device_train_batch_size: expected a whole number, got 2.5"),
    ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps: expected a number of at least 1, got 0"),
    ({"eval_steps": -1}, "eval_steps: expected a number of at least 0, got -1"),
    ({"max_grad_norm": math.nan}, "max_grad_norm: expected a finite number, got nan"),
    ({"adam_beta1": 1}, "adam_beta1: expected a number below 1, got 1"),
    ({"lr_scheduler_type": "slope"}, "lr_scheduler_type: expected one of linear, cosine.*, got 'slope'"),
    ({"load_best_model_at_end": "no"}, "load_best_model_at_end: expected true or false, got 'no'"),
    ({"lr_scheduler_kwargs": [1]}, r"lr_scheduler_kwargs: expected a mapping or text or null, got \[1\]"),
    ({"label_names": "labels"}, "label_names: expected a list or null, got 'labels'"),
]
WRONG += [
    ({"save_steps": 10**40}, "save_steps: expected a number of at most 9007199254740992, got 1e.40"),
    ({"learning_rate": -1e300}, "learning_rate: expected a number of at most"),
    ({"logging_steps": 2**53 + 1}, "logging_steps: expected a number of at most 9007199254740992, got 9.0"),
]
RUN_ALONE = [
    ({"seed": "x"}, "seed: expected a whole number, got 'x'"),
    ({"seed": -1}, "seed: expected a number of at least 0, got -1"),
    ({"seed": 2**32}, "seed: expected a number of at most 4294967295"),
    ({"bf16": "yes"}, "bf16: expected true or false, got 'yes'"),
    ({"label_smoothing_factor": 2}, "label_smoothing_factor: expected a number of at most 1, got 2"),
]


@pytest.mark.parametrize(("values", "words"), [*WRONG, *RUN_ALONE], ids=str)
def test_a_recipes_args_of_wrong_types_and_ranges_are_refused(values, words):
    with pytest.raises(ValueError, match=rf"^args\.{words}"):
        training_arguments({"output_dir": "out", **values})


@pytest.mark.parametrize(("values", "words"), WRONG, ids=str)
def test_a_stages_args_of_wrong_types_and_ranges_are_refused(values, words, tmp_path):
    with pytest.raises(ValueError, match=rf"^stage 'a': args\.{words}"):
        stage_args(TrainingArguments(tmp_path, use_cpu=True), Stage("a", "1 steps", args=values))


@pytest.mark.parametrize("values", [{"per_device_train_batch_size": 0}, {"gradient_accumulation_steps": 0}])
def test_a_trainers_own_args_are_checked_too(values, tmp_path):
    args = TrainingArguments(tmp_path, use_cpu=True, report_to="none", **values)
    with pytest.raises(ValueError, match=rf"^args\.{next(iter(values))}: expected a number of at least 1"):
        StagedTrainer(tiny.llama(), args, stages=[Stage("a", "1 steps")], train_dataset=tiny.lm_data()).plan()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("learning_rate", "1e-4", "expected a number, got '1e-4'"),
        ("weight_decay", [0.1], r"expected a number, got \[0.1\]"),
        ("adam_epsilon", None, "expected a number, got None"),
        ("max_grad_norm", {}, "expected a number, got {}"),
        ("save_steps", 2.0**60, "expected a number of at most"),
    ],
)
def test_args_set_in_python_are_refused_before_the_first_step(key, value, words, tmp_path):
    args = TrainingArguments(tmp_path, use_cpu=True, report_to="none")
    setattr(args, key, value)
    with pytest.raises(ValueError, match=rf"^args\.{key}: {words}"):
        StagedTrainer(tiny.llama(), args, stages=[Stage("a", "1 steps")], train_dataset=tiny.lm_data()).plan()


def test_values_that_trainer_accepts_are_accepted():
    given = {
        "learning_rate": 1,
        "max_steps": -1,
        "max_grad_norm": -1,
        "save_total_limit": -1,
        "eval_steps": 0.5,
        "lr_scheduler_type": SchedulerType.COSINE,
        "optim": "adamw_torch",
        "lr_scheduler_kwargs": {"num_cycles": 2},
        "report_to": ["none"],
        "fsdp": True,
        "label_names": ("labels",),
        "seed": 0,
    }
    check_types(given, "args")
    check_ranges(given, "args")


def test_no_default_is_refused():
    defaults = {
        f.name: f.default for f in dataclasses.fields(TrainingArguments) if f.default is not dataclasses.MISSING
    }
    check_types(defaults, "args")
    check_ranges(defaults, "args")
    assert isinstance(TrainingArguments("out", use_cpu=True).optim, OptimizerNames)
