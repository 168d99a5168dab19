"""What a loss that is written out by hand is a mean over, by trying: of several ways to count, which one makes the loss of two
parts of a batch that of the whole?
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
"""How far the loss of two parts may be from that of the whole, relative; in half precision rounding goes by the batch."""


@dataclass(frozen=True)
class AdditivityTrial:
    """Runs the loss on a batch, on its first row and on the others."""

    loss_of: Callable[[Mapping[str, Any], Any], torch.Tensor]
    half: bool = False

    def __call__(self, model: Any, inputs: Mapping[str, Any], ways: Sequence[Any]) -> Any:
        """The way to count that adds up; None where it is the first one or nothing tells, False if none does."""
        with fill_zero_weights(model):
            fitting = self._fitting(inputs, ways)
            if fitting is not None and len(fitting) > 1 and (uneven := _uneven(inputs)) is not None:
                with suppress(Exception):  # a loss that knows no -100
                    fitting = self._fitting(uneven, fitting) or fitting
        if fitting is None:
            return None
        if not fitting:
            return False
        return None if fitting[0] is ways[0] else Reduction((fitting[0],))

    def adds_up(self, inputs: Mapping[str, Any], count: Any) -> bool | None:
        off = self._off(_parts_of(inputs), count)
        return None if off is None else off <= self._allowed(torch.float32)

    def _fitting(self, inputs: Mapping[str, Any], ways: Sequence[Any]) -> list[Any] | None:
        """The ways that add up, in their order; None where the batch cannot tell."""
        parts = _parts_of(inputs)
        allowed = self._allowed(self.loss_of(parts[0], 1).dtype)
        off = [self._off(parts, count) for count in ways]
        found = [one for one in off if one is not None]
        if not found:
            return None
        # Rounding leaves several: those that are much further off than the best are not meant.
        most = min(allowed, max(4 * min(found), allowed / 8))
        return [count for count, one in zip(ways, off, strict=True) if one is not None and one <= most]

    def _off(self, parts: Sequence[Mapping[str, Any]], count: Any) -> float | None:
        """How far the two parts, each times its items, are from the whole; None where a part has none to tell by."""
        numbers = [1 if count is None else count(part) for part in parts]
        losses = [self.loss_of(part, n).detach().item() * float(n) for part, n in zip(parts, numbers, strict=True)]
        if not math.isfinite(sum(losses)) or not losses[0]:
            return None
        return abs(losses[1] + losses[2] - losses[0]) / abs(losses[0])

    def _allowed(self, dtype: torch.dtype) -> float:
        return max(_HALF if self.half else _TOLERANCE, 2 * torch.finfo(dtype).eps)


@contextmanager
def fill_zero_weights(model: Any) -> Iterator[None]:
    """A head of zeros gives every row one loss, whatever that is divided by: while it is tried it holds small numbers."""
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


def _uneven(inputs: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """With half of the first row's labels ignored: rows of one length tell tokens from rows no other way."""
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
    """A batch of one row with that row twice."""
    return {
        key: torch.cat([value, value]) if torch.is_tensor(value) and value.dim() and len(value) == 1 else value
        for key, value in inputs.items()
    }


def _parts_of(inputs: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The whole, its first row, and the others."""
    rows = rows_of(inputs)
    return inputs, _taken(inputs, rows, slice(0, 1)), _taken(inputs, rows, slice(1, None))


def _taken(inputs: Mapping[str, Any], rows: int, which: slice) -> dict[str, Any]:
    """Some rows of whatever has one for each example."""

    def has_rows(value: Any) -> bool:
        whole = (torch.is_tensor(value) and value.dim() > 0) or isinstance(value, list | tuple)
        return whole and len(value) == rows

    return {key: value[which] if has_rows(value) else value for key, value in inputs.items()}
