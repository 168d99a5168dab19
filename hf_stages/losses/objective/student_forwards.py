"""Tell whether one forward of the student gave all that a stage's terms read.

Trainer's ``compute_loss`` runs the model once, and all terms read that forward. An override may run it twice, or fuse
the head with the loss, so that there are no logits with a graph (TRL's SFTTrainer). Then the student is run once more.
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
    """The trainer's own forward and loss of one micro-batch, where a term takes the task's loss."""

    run: Callable[[bool], tuple[Any, Any]]
    """Runs it; returns the loss, and the outputs where the argument says that they are wanted."""
    items: Any
    """How many items the loss is a mean over."""
    is_overridden: bool
    """Whether another ``compute_loss`` than Trainer's computes it."""
    outputs_asked: bool
    """Whether the caller asked for outputs."""
    outputs_read: bool
    """Whether a term reads more than the loss."""

    def gives_all(self, signals: Signals, needs: frozenset[str]) -> bool:
        """Tell whether a forward with a graph gave all that is needed.

        Without a single item the loss is a zero made of the outputs, so these are needed, too.
        """
        if not (self.is_overridden and self.outputs_read):
            return True
        has_outputs = float(self.items) > 0 or _has_tensors(signals.outputs, graph=True)
        return meets_needs(signals, needs, graph=True) and has_outputs


def meets_needs(signals: Signals, needs: frozenset[str], *, graph: bool = False) -> bool:
    """Tell whether a forward gave what is needed: captured signals, and logits among the outputs."""
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
    """Tell whether outputs hold a tensor that is no scalar, under a name with this ending if they have names."""
    if isinstance(outputs, Mapping):
        outputs = [value for key, value in outputs.items() if key.endswith(name)]
    return any(torch.is_tensor(one) and one.dim() and (one.requires_grad or not graph) for one in outputs or ())
