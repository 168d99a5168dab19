"""Find by trial what a loss is a mean over, where it calls no loss function of torch.

Of several ways to count, the right one makes the loss of two parts of a batch add up to the loss of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import logging

from hf_stages.models.real_tokens import rows_of
from hf_stages.models.reduction import IGNORED, Reduction

logger = logging.get_logger(__name__)
_TOLERANCE, _HALF = 1e-4, 2e-3
"""How far the loss of two parts may be from that of the whole, relative; the second is for half precision."""


@dataclass(frozen=True)
class AdditivityTrial:
    """Compares the loss of a batch with that of its first row and of its other rows.

    Args:
        loss_of: Gives the loss of a batch; its second argument is the number of items to tell a ``compute_loss_func``.
        half: Whether the model runs in half precision.
    """

    loss_of: Callable[[Mapping[str, Any], Any], torch.Tensor]
    half: bool = False

    def __call__(self, model: Any, inputs: Mapping[str, Any], ways: Sequence[Any]) -> Any:
        """Return the way to count that adds up, or False if none does.

        None: the first way adds up, or the batch cannot tell.
        """
        with fill_zero_weights(model):
            fitting = self._fitting(inputs, ways)
            if fitting is not None and len(fitting) > 1 and (uneven := _with_fewer_labels(inputs)) is not None:
                with suppress(Exception):  # a loss that knows no -100
                    fitting = self._fitting(uneven, fitting) or fitting
        if fitting is None:
            return None
        if not fitting:
            return False
        return None if fitting[0] is ways[0] else Reduction((fitting[0],))

    def adds_up(self, inputs: Mapping[str, Any], count: Any) -> bool | None:
        """Tell whether this way to count adds up; None where the batch cannot tell."""
        off = self._deviation(_parts_of(inputs), count)
        return None if off is None else off <= self._allowed(torch.float32)

    def _fitting(self, inputs: Mapping[str, Any], ways: Sequence[Any]) -> list[Any] | None:
        """Return the ways that add up, in their order; None where the batch cannot tell."""
        parts = _parts_of(inputs)
        allowed = self._allowed(self.loss_of(parts[0], 1).dtype)
        off = [self._deviation(parts, count) for count in ways]
        found = [one for one in off if one is not None]
        if not found:
            return None
        # Rounding leaves several: those that are much further off than the best are not meant.
        most = min(allowed, max(4 * min(found), allowed / 8))
        return [count for count, one in zip(ways, off, strict=True) if one is not None and one <= most]

    def _deviation(self, parts: Sequence[Mapping[str, Any]], count: Any) -> float | None:
        """Return how far the two parts, each times its items, are from the whole; None where a part has no items."""
        numbers = [1 if count is None else count(part) for part in parts]
        losses = [self.loss_of(part, n).detach().item() * float(n) for part, n in zip(parts, numbers, strict=True)]
        if not math.isfinite(sum(losses)) or not losses[0]:
            return None
        return abs(losses[1] + losses[2] - losses[0]) / abs(losses[0])

    def _allowed(self, dtype: torch.dtype) -> float:
        return max(_HALF if self.half else _TOLERANCE, 2 * torch.finfo(dtype).eps)


@contextmanager
def fill_zero_weights(model: Any) -> Iterator[None]:
    """Put small random numbers in the place of weights that are all zero, within the block.

    A head of zeros gives every row the same loss, so that no way to count can be told from another.
    """
    zeros = [p for p in model.parameters() if p.is_floating_point() and p.numel() and not bool(p.any())]
    noise = torch.Generator().manual_seed(0)
    held = [p.detach().clone() for p in zeros]
    try:
        with torch.no_grad():
            for p in zeros:
                p.copy_(torch.randn(p.shape, generator=noise) * 0.1)
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(zeros, held, strict=True):
                p.copy_(value)


def _with_fewer_labels(inputs: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Ignore half of the first row's labels: with rows of one length nothing else tells tokens from rows."""
    labels: Any = inputs.get("labels")
    if not torch.is_tensor(labels) or labels.is_floating_point() or labels.dim() != 2 or "shift_labels" in inputs:
        return None
    there = labels[0].ne(IGNORED).nonzero().flatten()
    there = there[there > 0]  # the first one is no target of a model that shifts
    if len(there) < 2:
        return None
    labels = labels.clone()
    labels[0, there[: len(there) // 2]] = IGNORED
    return {**inputs, "labels": labels}


def doubled(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Repeat the row of a batch that has only one."""
    return {
        key: torch.cat([value, value]) if torch.is_tensor(value) and value.dim() and len(value) == 1 else value
        for key, value in inputs.items()
    }


def _parts_of(inputs: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Return the whole batch, its first row, and its other rows."""
    rows = rows_of(inputs)
    return inputs, _choose_rows(inputs, rows, slice(0, 1)), _choose_rows(inputs, rows, slice(1, None))


def _choose_rows(inputs: Mapping[str, Any], rows: int, which: slice) -> dict[str, Any]:
    """Choose rows of every value that has one for each example."""

    def has_rows(value: Any) -> bool:
        whole = (torch.is_tensor(value) and value.dim() > 0) or isinstance(value, list | tuple)
        return whole and len(value) == rows

    return {key: value[which] if has_rows(value) else value for key, value in inputs.items()}
