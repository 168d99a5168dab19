"""Take the model's own loss, divided so that the gradient does not depend on how the batch is cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

from hf_stages.losses.base import Loss, adapted
from hf_stages.models.outputs import causal_model_names
from hf_stages.models.real_tokens import rows_of
from hf_stages.models.reduction import Reduction


@dataclass(frozen=True)
class TaskLoss(Loss):
    """The loss that the model computes from its labels: cross-entropy, regression, multi-label, masked or causal LM.

    Models report a mean over the micro-batch. This loss multiplies it by the items that the mean ran over, so that the
    trainer can divide by the items of the whole update. What the items are is found out on a stage's first batch. Where
    the batch cannot tell, items are labels that are not -100 (shifted for causal models), elements of float labels, and
    rows where there are no ``labels``.

    >>> TaskLoss().items({"labels": torch.tensor([[5, 6, -100]])})
    tensor(2)
    """

    needs = frozenset({"loss"})
    shift: bool | None = None
    """Whether the model shifts labels, so that position 0 is no target. None: found out from the model."""
    reduction = None
    _shift = None

    def for_models(self, student: Any, teacher: Any) -> TaskLoss:
        if self.shift is not None:
            return self
        base = getattr(student, "get_base_model", lambda: student)()
        causal = LOSS_MAPPING.get(getattr(base, "loss_type", None)) is ForCausalLMLoss
        causal = causal or not causal_model_names().isdisjoint(cls.__name__ for cls in type(base).__mro__)
        decoder = getattr(getattr(base, "config", None), "is_encoder_decoder", False)
        return adapted(self, _shift=causal and not decoder)

    @property
    def task(self) -> TaskLoss:
        return self

    @property
    def finds_reduction(self) -> bool:
        return self.shift is None

    def set_reduction(self, reduction: Reduction | None) -> None:
        """Set, once in a stage's own copy, what the loss of this model and this data is a mean over."""
        object.__setattr__(self, "reduction", reduction)

    @property
    def shifts(self) -> bool:
        if self.shift is not None:
            return self.shift
        found = self.reduction.counts[0] if self.reduction is not None else None
        return found.shift if found is not None else bool(self._shift)

    @property
    def summed(self) -> bool:  # type: ignore[override]
        return self.reduction is not None and self.reduction.summed

    def items(self, batch: Mapping[str, Any]) -> Any:
        if self.reduction is not None:
            return self.reduction.items(batch)
        labels: Any = batch.get("shift_labels")
        shifted = labels is not None
        labels = labels if shifted else batch.get("labels")
        if not torch.is_tensor(labels):
            return rows_of(batch)
        if labels.is_floating_point():
            return labels.numel()
        if self.shifts and not shifted:
            labels = labels[..., 1:]
        return labels.ne(-100).sum()

    def __call__(self, student: Any, teacher: Any, batch: Mapping[str, Any], t: float) -> torch.Tensor:
        items = self.items(batch)
        # A micro-batch without a single target gives 0/0 in the model; where() keeps the NaN out of the value,
        # and the second term keeps it out of the gradient while every parameter still takes part (DDP waits for it).
        if float(items) == 0:
            return _zero_with_graph(student.outputs)
        return student.loss if self.summed else student.loss * items


def _zero_with_graph(outputs: Any) -> torch.Tensor:
    values = outputs.values() if isinstance(outputs, Mapping) else outputs
    heads = [v for v in values if torch.is_tensor(v) and v.requires_grad and v.dim() > 0]
    if not heads:
        raise ValueError(
            "TaskLoss: a micro-batch has no target (every label is -100) and the model returned nothing but its loss; "
            "drop such examples from the dataset"
        )
    return torch.stack([head.sum() for head in heads]).sum() * 0.0
