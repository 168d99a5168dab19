"""A linear layer with a norm before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class NormedLinear(nn.Module):
    """``linear(RMSNorm(x))``: the norm of SubLN, which keeps the input of a low-bit layer at one scale (BitDistill).

    The norm computes in float32, and its gain starts at 1. ``weight``, ``bias``, ``in_features`` and ``out_features``
    are those of the linear layer, which may be replaced by a quantized one later.

    Args:
        linear: The layer that follows the norm: an ``nn.Linear`` or a ``Conv1D``.
        eps: What is added to the mean square, against division by zero.

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

    # Models read these from a linear layer: T5 the dtype of `wo.weight`, initializers both.
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
    """``gain * x / sqrt(mean(x ** 2) + eps)``.

    transformers' initializers know it by its class name and set the gain to 1.
    """

    def __init__(self, width: int, eps: float, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width, device=device, dtype=dtype))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        # Autocast alone would leave inputs in bf16.
        normed = functional.rms_norm(hidden.float(), self.weight.shape, self.weight.float(), self.eps)
        return normed.to(hidden.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


def _width(linear: Any, side: int) -> int:
    """Return the number of inputs (0) or outputs (1), which GPT-2's Conv1D has under other names."""
    return (
        getattr(linear, ("in_features", "out_features")[side])
        if hasattr(linear, "in_features")
        else (getattr(linear, ("nx", "nf")[side]))
    )
