"""Warnings about what was given and has no effect: TrainingArguments that stages overrule, an unused teacher."""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers import TrainingArguments

from hf_stages.core.stage import Recipe, Stage
from hf_stages.losses.objective.stage_losses import wants_teacher
from hf_stages.planning.plan import schedule_defaults, span_of
from hf_stages.schedules.base import Defaults
from hf_stages.schedules.of_stage import schedule_of

_READ_BY_SCHEDULES = {
    "learning_rate": "learning_rate",
    "warmup_steps": "warmup",
    "lr_scheduler_type": "shape",
    "lr_scheduler_kwargs": "shape_kwargs",
}
"""The args that schedules read, and what schedules call them."""
_WATCHED = ("num_train_epochs", *_READ_BY_SCHEDULES)


def unused_args(args: TrainingArguments, recipe: Recipe) -> list[str]:
    """Return one sentence for each reason. Keys of a recipe's own ``args`` were given for certain."""
    stages, written = recipe.stages, recipe.args
    given = {name for name in _WATCHED if name in written or _was_given(args, name)}
    read = set().union(*(_args_read(args, stage) for stage in stages))
    apart = args.world_size > 1 and not args.average_tokens_across_devices
    reasons = {
        "each stage's `until` says how long it is": {
            "max_steps": args.max_steps > 0,
            "num_train_epochs": "num_train_epochs" in given,
        },
        "the schedule or args of every stage say their own": {
            name: name in given and name not in read for name in _READ_BY_SCHEDULES
        },
        "a resumed run knows its place in the data and has nothing to skip": {
            "ignore_data_skip": args.ignore_data_skip
        },
        "a loss is divided by its items on all ranks": {"average_tokens_across_devices": apart},
    }
    found = {why: [name for name, unused in names.items() if unused] for why, names in reasons.items()}
    used = recipe.teacher is None or any(wants_teacher(stage) for stage in stages)
    teacher = (
        "teacher: no loss of any stage compares with it, so nobody learns from it; give a stage loss=LogitKL(), for one"
    )
    return ([] if used else [teacher]) + [
        f"args: {' and '.join(names)} {'have' if len(names) > 1 else 'has'} no effect with these stages: {why}"
        for why, names in found.items()
        if names
    ]


def _was_given(args: TrainingArguments, name: str) -> bool:
    """Tell whether somebody set a field: its value, or the object, is not the default's.

    A default that was left alone is the very object of the dataclass. Args that were pickled or read from JSON have
    other objects for all floats, so there an equal value tells nothing.
    """
    value, default = getattr(args, name), type(args).__dataclass_fields__[name].default
    if (getattr(value, "value", value) or None) != (default or None):
        return True
    return isinstance(default, float) and value is not default and not _was_copied(args)


def _was_copied(args: TrainingArguments) -> bool:
    floats = [field for field in dataclasses.fields(args) if isinstance(field.default, float)]
    return not any(getattr(args, field.name) is field.default for field in floats)


def _args_read(args: TrainingArguments, stage: Stage) -> set[str]:
    """Return which of the run's args the stage's schedule reads."""
    if schedule_of(stage).resumes:
        return set()
    asked = _DefaultsRead(schedule_defaults(args))
    try:
        span_of(stage, asked, 1000, args.learning_rate)  # type: ignore[arg-type]
    except ValueError:  # which the plan says better
        return set(_READ_BY_SCHEDULES)
    return {name for name, called in _READ_BY_SCHEDULES.items() if called in asked.names and name not in stage.args}


class _DefaultsRead:
    """Stands in for a schedule's defaults and notes which of them are read."""

    def __init__(self, defaults: Defaults) -> None:
        self.defaults, self.names = defaults, set[str]()

    def __getattr__(self, name: str) -> Any:
        self.names.add(name)
        return getattr(self.defaults, name)
