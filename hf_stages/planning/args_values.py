"""Checks of the values of TrainingArguments' fields: their types, and ranges that a run can train with."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import lru_cache
from numbers import Real
from typing import Any, get_origin

from transformers import TrainingArguments

from hf_stages.core.type_hints import describe_hint, hints_of, union_members, value_fits

_AT_LEAST_ONE = frozenset(
    {
        *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
        *("eval_accumulation_steps", "dataloader_prefetch_factor", "torch_empty_cache_steps"),
        *("ddp_bucket_cap_mb", "ddp_timeout"),
    }
)
_OFF_BELOW_ZERO = frozenset({"max_grad_norm", "save_total_limit"})
"""A negative number in these fields means "off" to Trainer."""
_ALSO = {"fsdp": (bool, list)}
"""Types that Trainer accepts and its annotations leave out."""
_MOST = 2**53
"""No run counts this far. Above it a float skips whole numbers."""
_HIGHEST = {"seed": 2**32 - 1, "adam_beta1": 1, "adam_beta2": 1, "label_smoothing_factor": 1}
_BELOW = frozenset({"adam_beta1", "adam_beta2"})
"""Fields whose highest number itself is too high."""


def check_types(given: Mapping[str, Any], where: str) -> None:
    """Raise ValueError where a value is not of its field's type. Unknown fields are left to others."""
    hints = _hints()
    for key, value in given.items():
        known = (*union_members(hints.get(key)), *_ALSO.get(key, ()))
        if any(_is_enum(member) for member in known):  # "SchedulerType | str": the text is one of its values
            known = tuple(member for member in known if member is not str)
        if known and not any(_fits(value, member) for member in known):
            raise ValueError(f"{where}.{key}: expected {' or '.join(map(_show, known))}, got {value!r}")


def check_args(args: TrainingArguments) -> None:
    """Check args that were made in Python: ``TrainingArguments(learning_rate="1e-4")`` raises no error itself."""
    check_types({key: value for key, value in vars(args).items() if _is_numeric(_hints().get(key))}, "args")
    check_ranges(vars(args), "args")


def check_ranges(given: Mapping[str, Any], where: str) -> None:
    """Raise ValueError for numbers that no run can have, before torch or a division finds them in the middle of it."""
    for key, value in given.items():
        default = _defaults().get(key)
        if isinstance(value, bool) or not isinstance(value, Real) or key not in _defaults():
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{where}.{key}: expected a finite number, got {value!r}")
        if not -_MOST <= value <= _MOST:  # type: ignore[operator]
            raise ValueError(f"{where}.{key}: expected a number of at most {_MOST}, got {value:.6g}")
        number = float(value)
        lowest = 1 if key in _AT_LEAST_ONE else 0
        may_be_negative = key in _OFF_BELOW_ZERO or (isinstance(default, Real) and float(default) < 0)  # -1: unset
        if number < lowest and not may_be_negative:
            raise ValueError(f"{where}.{key}: expected a number of at least {lowest}, got {value!r}")
        highest = _HIGHEST.get(key)
        if highest is not None and (number > highest or (number == highest and key in _BELOW)):
            most = f"below {highest}" if key in _BELOW else f"of at most {highest}"
            raise ValueError(f"{where}.{key}: expected a number {most}, got {value!r}")


@lru_cache(maxsize=1)
def _hints() -> dict[str, Any]:
    return {key: hint for key, hint in hints_of(TrainingArguments).items() if key in _defaults()}


@lru_cache(maxsize=1)
def _defaults() -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(TrainingArguments) if field.init}


def _fits(value: Any, member: Any) -> bool:
    kind = get_origin(member) or member
    if kind is Any:
        return True
    if kind is list:
        return isinstance(value, Sequence) and not isinstance(value, str)
    if kind is dict:
        return isinstance(value, Mapping)
    if _is_enum(kind):
        return isinstance(value, kind) or value in [one.value for one in kind]
    return value_fits(value, member)


def _is_numeric(hint: Any) -> bool:
    kinds = {*union_members(hint)} - {type(None)}
    return bool(kinds) and kinds <= {int, float}


def _is_enum(member: Any) -> bool:
    return isinstance(member, type) and issubclass(member, Enum)


def _show(member: Any) -> str:
    kind = get_origin(member) or member
    if _is_enum(kind):
        return f"one of {', '.join(str(one.value) for one in kind)}"
    return {list: "a list", dict: "a mapping"}.get(kind) or describe_hint(member)
