"""Which forward of the student a stage's terms read, where the trainer computes its loss in a way of its own.

Trainer's ``compute_loss`` runs the model once: the loss and what other terms read come from there. An override may run it
twice, or fuse the head with the loss, so that there are no logits with a graph (TRL's SFTTrainer). What a term needs and that
forward does not give comes from one more forward of the student.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hf_stages.models.capture import WHOLE
from hf_stages.models.signals import Signals


@dataclass(frozen=True)
class TaskForward:
    """The trainer's own forward and loss of one micro-batch, for stages that have a term of the task's loss."""

    run: Callable[[bool], tuple[Any, Any]]
    """Gives the loss and, where it is told that they are wanted, the outputs."""
    items: Any
    """Over how many items the loss ran."""
    is_overridden: bool
    """Whether it is not Trainer's ``compute_loss`` that computes it."""
    outputs_asked: bool
    """Whether the caller asked for outputs."""
    outputs_read: bool
    """Whether a term reads more than the loss."""

    def gives_all(self, signals: Signals, needs: frozenset[str]) -> bool:
        """Whether a forward with a graph gave all that is needed. Without an item, the loss of zero hangs on the outputs."""
        if not (self.is_overridden and self.outputs_read):
            return True
        has_outputs = float(self.items) > 0 or _has_tensors(signals.outputs, graph=True)
        return meets_needs(signals, needs, graph=True) and has_outputs


def meets_needs(signals: Signals, needs: frozenset[str], *, graph: bool = False) -> bool:
    """Whether all that is needed of a forward was there: what hooks keep, and logits among the outputs."""
    if not needs - WHOLE - {"final"} <= signals.captured.keys():
        return False
    if "outputs" in needs and not _has_tensors(signals.outputs, graph=graph):
        return False
    return (
        not needs & {"logits", "final"}
        or "head" in signals.captured
        or _has_tensors(signals.outputs, "logits", graph=graph)
    )


def _has_tensors(outputs: Any, name: str = "", *, graph: bool = False) -> bool:
    """Whether a model's outputs hold a tensor of several numbers, under such a name if they have names."""
    if isinstance(outputs, Mapping):
        outputs = [value for key, value in outputs.items() if key.endswith(name)]
    return any(torch.is_tensor(one) and one.dim() and (one.requires_grad or not graph) for one in outputs or ())
