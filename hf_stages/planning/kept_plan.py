"""A plan that is kept for later, and whether it still holds: nothing that it was made from has changed since."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any

from transformers import TrainingArguments

from hf_stages.core.stage import Recipe
from hf_stages.planning.plan import Plan


@dataclass(frozen=True)
class KeptPlan:
    """Holds a plan with a picture of what it was made from.

    >>> from hf_stages import Stage
    >>> recipe, args = Recipe([Stage("a", "1 epochs")], train_dataset=[1, 2]), TrainingArguments("out", use_cpu=True)
    >>> kept = KeptPlan.of(None, recipe, args, None)
    >>> kept.holds_for(recipe, args, None)
    True
    >>> recipe.train_dataset.append(3)
    >>> kept.holds_for(recipe, args, None)
    False
    """

    plan: Plan
    made_from: Any
    """The recipe's picture and the tokenizer's; see ``_picture``."""
    made_with: Mapping[str, Any]
    """The TrainingArguments as plain data."""

    @classmethod
    def of(cls, plan: Plan, recipe: Recipe, args: TrainingArguments, tokenizer: Any) -> KeptPlan:
        """Keep a plan that was just made."""
        return cls(plan, _picture((recipe, tokenizer)), args.to_dict())

    def holds_for(self, recipe: Recipe, args: TrainingArguments, tokenizer: Any) -> bool:
        """Tell whether a plan would be made from the very same objects, with the same fields and lengths."""
        return self.made_with == args.to_dict() and self.made_from == _picture((recipe, tokenizer))


class _Same:
    """Equals only what holds the very same object, which stays alive meanwhile."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]


def _picture(value: Any, around: tuple[int, ...] = ()) -> Any:
    """Describe a value so that two descriptions are equal only if nothing was replaced, set, added or removed.

    Plain values count as they are, parts (dataclasses) by their fields too, datasets by identity and length.
    """
    if value is None or isinstance(value, str | int | float | Enum):
        return value
    if id(value) in around:
        return _Same(value)
    around = (*around, id(value))
    if isinstance(value, tuple):
        return tuple(_picture(item, around) for item in value)
    if isinstance(value, dict):
        return tuple((key, _picture(item, around)) for key, item in value.items())
    held = fields(value) if is_dataclass(value) and not isinstance(value, type) else ()
    inside = tuple(_picture(getattr(value, field.name, None), around) for field in held)
    return _Same(value), _length(value), inside


def _length(value: Any) -> int | None:
    try:
        return len(value)
    except (TypeError, NotImplementedError):  # a stream, a part, a model
        return None
