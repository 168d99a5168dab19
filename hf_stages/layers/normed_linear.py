"""A norm before a linear."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class NormedLinear(nn.Module):
    """``linear(RMSNorm(x))``: SubLN's norm, which keeps what enters a low-bit layer at one scale (BitDistill).

    The norm computes in float32 and its gain starts at 1. It reads as the linear it stands for: ``weight``, ``bias``,
    ``in_features`` and ``out_features`` are the linear's. A quantized subclass may take the place of ``linear`` later.

    >>> NormedLinear(nn.Linear(4, 2)).norm
    _RMSNorm(4, eps=1e-06)
    """

    def __init__(self, linear: nn.Module, eps: float = 1e-6) -> None:
        super().__init__()
        weight: Any = linear.weight
        dtype = weight.dtype if weight.is_floating_point() else torch.get_default_dtype()
        self.norm = _RMSNorm(_width(linear, 0), eps, weight.device, dtype)
        self.linear = linear
        self.train(linear.training)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(hidden))

    # Models read these on a linear: T5 the dtype of `wo.weight`, initializers both.
    @property
    def weight(self) -> torch.Tensor:
        return self.linear.weight

    @property
    def bias(self) -> torch.Tensor | None:
        return self.linear.bias

    @property
    def in_features(self) -> int:
        return _width(self.linear, 0)

    @property
    def out_features(self) -> int:
        return _width(self.linear, 1)


class _RMSNorm(nn.Module):
    """``gain * x / sqrt(mean(x ** 2) + eps)``. By its class name, transformers' initializers set the gain to 1."""

    def __init__(self, width: int, eps: float, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width, device=device, dtype=dtype))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        # Autocast would otherwise leave bf16 inputs as they are.
        normed = functional.rms_norm(hidden.float(), self.weight.shape, self.weight.float(), self.eps)
        return normed.to(hidden.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


def _width(linear: Any, side: int) -> int:
    """What enters (0) or leaves (1). GPT-2's Conv1D calls them otherwise."""
    return (
        getattr(linear, ("in_features", "out_features")[side])
        if hasattr(linear, "in_features")
        else (getattr(linear, ("nx", "nf")[side]))
    )
