"""What was given and has no effect with these stages: of TrainingArguments, and a teacher that no loss asks."""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers import TrainingArguments

from hf_stages.core.stage import Recipe, Stage
from hf_stages.losses.objective.stage_losses import wants_teacher
from hf_stages.planning.plan import args_defaults, span_of
from hf_stages.schedules.base import Defaults
from hf_stages.schedules.of_stage import schedule_of

_OF_SCHEDULES = {
    "learning_rate": "learning_rate",
    "warmup_steps": "warmup",
    "lr_scheduler_type": "shape",
    "lr_scheduler_kwargs": "shape_kwargs",
}
"""What schedules take from the args, and what it is called there."""
_WATCHED = ("num_train_epochs", *_OF_SCHEDULES)


def unused_args(args: TrainingArguments, recipe: Recipe) -> list[str]:
    """One sentence for each reason. Of the keys of a recipe's own ``args`` it is known that they were given."""
    stages, written = recipe.stages, recipe.args
    given = {name for name in _WATCHED if name in written or _was_given(args, name)}
    read = set().union(*(_read(args, stage) for stage in stages))
    apart = args.world_size > 1 and not args.average_tokens_across_devices
    reasons = {
        "each stage's `until` says how long it is": {
            "max_steps": args.max_steps > 0,
            "num_train_epochs": "num_train_epochs" in given,
        },
        "the schedule or args of every stage say their own": {
            name: name in given and name not in read for name in _OF_SCHEDULES
        },
        "a resumed run knows its place in the data and has nothing to skip": {
            "ignore_data_skip": args.ignore_data_skip
        },
        "a loss is divided by its items on all ranks": {"average_tokens_across_devices": apart},
    }
    found = {why: [name for name, unused in names.items() if unused] for why, names in reasons.items()}
    taught = recipe.teacher is None or any(wants_teacher(stage) for stage in stages)
    teacher = (
        "teacher: no loss of any stage compares with it, so nobody learns from it; give a stage loss=LogitKL(), for one"
    )
    return ([] if taught else [teacher]) + [
        f"args: {' and '.join(names)} {'have' if len(names) > 1 else 'has'} no effect with these stages: {why}"
        for why, names in found.items()
        if names
    ]


def _was_given(args: TrainingArguments, name: str) -> bool:
    """Another value than the default, or another object of the same value.

    A default that was left alone is the very object of the dataclass. What was pickled or came from JSON has lost that:
    there all floats are other objects, and an equal one says nothing.
    """
    value, default = getattr(args, name), type(args).__dataclass_fields__[name].default
    if (getattr(value, "value", value) or None) != (default or None):
        return True
    return isinstance(default, float) and value is not default and not _was_copied(args)


def _was_copied(args: TrainingArguments) -> bool:
    floats = [field for field in dataclasses.fields(args) if isinstance(field.default, float)]
    return not any(getattr(args, field.name) is field.default for field in floats)


def _read(args: TrainingArguments, stage: Stage) -> set[str]:
    """What the stage's schedule asks the run's args for."""
    if schedule_of(stage).resumes:
        return set()
    asked = _Asked(args_defaults(args))
    try:
        span_of(stage, asked, 1000, args.learning_rate)  # type: ignore[arg-type]
    except ValueError:  # which the plan says better
        return set(_OF_SCHEDULES)
    return {name for name, called in _OF_SCHEDULES.items() if called in asked.names and name not in stage.args}


class _Asked:
    """Notes what is read of a schedule's defaults."""

    def __init__(self, defaults: Defaults) -> None:
        self.defaults, self.names = defaults, set[str]()

    def __getattr__(self, name: str) -> Any:
        self.names.add(name)
        return getattr(self.defaults, name)
