"""What losses read of one forward pass of a model: its outputs, its own loss, and what was captured.

Each signal has a key: ``loss`` (the model's own), ``logits`` (complete), ``final`` (logits, or the head with the states
that enter it), ``hidden.3`` (what leaves the third block; ``hidden.0`` enters the first), ``attention.3`` (queries,
keys and values of the third block) and, of a recurrent core, ``cycles`` (what each cycle ends with). In models of two
stacks the stack is named: ``encoder.hidden.3``, ``decoder.attention.1``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Attention:
    """What one layer's attention function is called with: queries and keys after RoPE and after any norm."""

    query: torch.Tensor
    """(batch, heads, tokens, size)"""
    key: torch.Tensor
    """(batch, key heads, tokens, size): fewer heads than queries under grouped-query attention."""
    value: torch.Tensor
    scaling: float
    mask: torch.Tensor | None
    """The mask: boolean (True is visible) or added to the scores; None where nothing is masked."""
    causal: bool
    """True where there is no mask and the function itself hides later tokens."""
    softcap: float | None = None
    """The limit of scores, ``tanh(s / softcap) * softcap``, as in Gemma 2."""
    bias: torch.Tensor | None = None
    """What is added to the scores for relative positions, as in T5."""


@dataclass(frozen=True)
class Head:
    """The output head and the states that enter it: logits that are computed later, a chunk at a time."""

    hidden: torch.Tensor
    """(batch, tokens, width)"""
    module: nn.Module


@dataclass(frozen=True)
class Signals:
    """What one forward of one model left for the losses."""

    outputs: Any = None
    loss: torch.Tensor | None = None
    """A mean over the micro-batch, as models report it."""
    captured: Mapping[str, Any] = field(default_factory=dict)

    @property
    def logits(self) -> torch.Tensor:
        if isinstance(self.outputs, Mapping):
            return self.outputs["logits"]
        # A tuple begins with the model's own loss, a scalar, where the batch had labels.
        return next(value for value in self.outputs if torch.is_tensor(value) and value.dim())

    @property
    def final(self) -> torch.Tensor | Head:
        head = self.captured.get("head")
        return head if head is not None else self.logits

    def __getitem__(self, key: str) -> Any:
        if key not in self.captured:
            raise ValueError(
                f"{key} was not captured: the model's forward did not pass there; there is "
                f"{', '.join(sorted(self.captured)) or 'nothing'}"
            )
        return self.captured[key]


def key_of(kind: str, layer: int, stack: str | None = None) -> str:
    """Return the key of a signal of one layer.

    >>> key_of("hidden", 3), key_of("attention", 1, "encoder")
    ('hidden.3', 'encoder.attention.1')
    """
    return f"{kind}.{layer}" if stack is None else f"{stack}.{kind}.{layer}"
