"""What a loss sees of a model in one forward: its outputs, its own loss, and what was captured on the way.

Signals go by keys: ``loss`` (the model's own), ``logits`` (whole), ``final`` (logits, or what the head would make
them of), ``hidden.3`` (what leaves the third block; 0 enters the first) and ``attention.3`` (queries, keys, values
of the third block's self-attention). Models of two stacks say which: ``encoder.hidden.3``, ``decoder.attention.1``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Attention:
    """One layer's self-attention as its attention function got it: after RoPE and any norm of queries and keys."""

    query: torch.Tensor
    """(batch, heads, tokens, size)"""
    key: torch.Tensor
    """(batch, key heads, tokens, size): fewer heads than queries under grouped-query attention."""
    value: torch.Tensor
    scaling: float
    mask: torch.Tensor | None
    """As given to the attention function: boolean (True is seen) or added to the scores; None where nothing is masked."""
    causal: bool
    """True where the function itself hides later tokens, the mask being None."""
    softcap: float | None = None
    """Gemma 2 squashes scores by ``tanh(s / softcap) * softcap``."""
    bias: torch.Tensor | None = None
    """T5's relative positions, added to the scores."""


@dataclass(frozen=True)
class Head:
    """Logits not yet made: the states that enter the output head, and the head. It is applied a chunk at a time."""

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
    """
    >>> key_of("hidden", 3), key_of("attention", 1, "encoder")
    ('hidden.3', 'encoder.attention.1')
    """
    return f"{kind}.{layer}" if stack is None else f"{stack}.{kind}.{layer}"
