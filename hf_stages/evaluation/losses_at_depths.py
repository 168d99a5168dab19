"""Measure a recurrent model's loss at several depths within one evaluation: same batches, same initial state."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hf_stages.core.depth_metrics import metric_at
from hf_stages.layers.recurrent import at_depth, carrying_states, find_recurrence


class LossesAtDepths:
    """Sums of the loss at each depth over one evaluation of one set.

    Args:
        model: The recurrent model.
        depths: Numbers of cycles.
        totals: A tensor of the evaluation's other sums, whose type and device these have.
    """

    def __init__(self, model: Any, depths: Sequence[int], totals: torch.Tensor) -> None:
        self.model, self.depths = model, tuple(depths)
        self.values = totals.new_zeros(len(self.depths))

    def add(self, measure: Callable[[], torch.Tensor]) -> None:
        """Add one batch. ``measure`` runs the model on it and gives the loss, summed over its items.

        Each depth goes on from the state of the one before, so all of them take as many cycles as the deepest.
        """
        values = []
        with carrying_states(self.model):
            for depth in self.depths:
                with at_depth(self.model, depth):
                    values.append(measure())
        self.values += torch.stack(values).to(self.values)

    def metrics(self, prefix: str, items: float, size: float | None, *, is_code_length: bool) -> dict[str, float]:
        """Return the losses and, of a code length of text, perplexities and bits per byte. All ranks call it.

        Args:
            prefix: What the names begin with, such as ``eval_prose``.
            items: What the losses are a mean over.
            size: Bytes of the text; None or 0 where they are unknown.
            is_code_length: Whether the loss is the code length of a text by a language model.
        """
        values = self.values.clone()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(values)
        found: dict[str, float] = {}
        for depth, value in zip(self.depths, values.tolist(), strict=True):
            found[metric_at(f"{prefix}_loss", depth)] = value / items
            if is_code_length:
                found[metric_at(f"{prefix}_ppl", depth)] = perplexity(value / items)
            if is_code_length and size:
                found[metric_at(f"{prefix}_bits_per_byte", depth)] = value / math.log(2) / size
        return found


def losses_at_depths(model: Any, depths: Sequence[int], totals: torch.Tensor) -> LossesAtDepths | None:
    """Make the sums; None where there are no depths to measure, or where the model is not recurrent.

    A set with depths may belong to another stage of the run, whose model is recurrent while this one is not.
    """
    return LossesAtDepths(model, depths, totals) if depths and find_recurrence(model) is not None else None


def perplexity(loss: float) -> float:
    """Give e to the power of a loss per token; infinity where that is beyond floats.

    >>> perplexity(0.0), perplexity(1e4)
    (1.0, inf)
    """
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
