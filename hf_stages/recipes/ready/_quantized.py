"""Makes the transforms, losses and stages of the ready recipes of compression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_stages.core.duration import Duration
from hf_stages.core.stage import Stage
from hf_stages.losses.attention_mse import AttentionMSE
from hf_stages.losses.attention_relation import AttentionRelation
from hf_stages.losses.base import Loss
from hf_stages.recipes.ready._parts import feature_losses


def shrink_transforms(reduce: Sequence[int] | None, width: float | None, stack: str | None = None) -> list[Any]:
    """Return transforms that leave fewer layers, then make them narrower."""
    made: list[Any] = []
    if reduce is not None:
        from hf_stages.transforms.reduce_layers import ReduceLayers

        made.append(ReduceLayers(list(reduce), stack))
    if width is not None:
        from hf_stages.transforms.reduce_width import ReduceWidth

        made.append(ReduceWidth(width, stack=stack))
    return made


def head_transforms(set_task: Any) -> list[Any]:
    """Return the transform that gives a new head: a ``SetTask``, its arguments, or a classifier's labels."""
    from hf_stages.transforms.base import Transform
    from hf_stages.transforms.set_task import SetTask

    if set_task is None:
        return []
    if isinstance(set_task, Transform):
        return [set_task]
    if isinstance(set_task, Mapping) and "auto_class" in set_task:
        return [SetTask(**set_task)]
    if isinstance(set_task, int) and not isinstance(set_task, bool):
        return [SetTask("AutoModelForSequenceClassification", num_labels=set_task)]
    if isinstance(set_task, Mapping | list | tuple):
        return [SetTask("AutoModelForSequenceClassification", id2label=set_task)]
    raise ValueError(
        "set_task: expected the labels of a classifier, how many they are, a SetTask or its arguments, "
        f"got {set_task!r}"
    )


WITHOUT_EVALUATION: dict[str, Any] = {
    "eval_dataset": {},
    "args": {"eval_strategy": "no", "load_best_model_at_end": False},
}
"""Settings of a stage on a corpus: the run's evaluation data is the task's, and its model cannot be scored on it
yet."""


def compression_losses(
    hidden: Any, attention: Any, layers: Any, reduce: Any, width: float | None = None, stack: str | None = None
) -> list[Loss]:
    """Return the losses of hidden states and attention.

    A narrower model has fewer heads, so their scores cannot be compared one by one; their relations are.
    """
    scores = AttentionMSE if width in (None, 1) else AttentionRelation
    return feature_losses(hidden, attention, layers, reduce, stack=stack, scores=scores)


def sum_losses(name: str, losses: Sequence[Loss]) -> Loss:
    if not losses:
        raise ValueError(f"stage {name!r}: every part of its loss has weight 0, so nothing would be learned")
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total


def build_stage(
    name: str, until: str | Duration, losses: Sequence[Loss], rate: Any, transforms: Sequence[Any] = (), **more: Any
) -> Stage:
    args = {**more.pop("args", {}), **({} if rate is None else {"learning_rate": rate})}
    return Stage(name, until, loss=sum_losses(name, losses), transforms=transforms, args=args, **more)


def one_rate_per_stage(learning_rate: Any, count: int) -> list[Any]:
    rates = list(learning_rate) if isinstance(learning_rate, list | tuple) else [learning_rate] * count
    if len(rates) != count:
        raise ValueError(f"learning_rate: expected one, or one for each of {count} stages, got {len(rates)}")
    return rates
