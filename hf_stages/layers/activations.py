"""Activations rounded to 8 or 4 bits, within a range of each token's own or within a learned range."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from hf_stages.layers._numbers import at_least_float32

_NARROWEST = 1e-5
"""The smallest width of a learned range: training may drive it to zero."""

Coded = tuple[torch.Tensor, torch.Tensor, Any]
"""The codes (one byte each), the scale, and the zero point (None where it is 0)."""


@dataclass(frozen=True)
class Activations:
    """How the input of a quantized layer is rounded.

    With ``clip=None`` the range is dynamic: each token's largest value is its range, so nothing is clipped and the
    gradient passes straight through. Otherwise the range is learned: it begins at ``clip`` and is trained (with the
    gradient of LSQ), and activations beyond it get no gradient. In both cases a token that contains NaN or infinity
    becomes NaN.

    >>> Activations(bits=4)(torch.tensor([[0.0, 0.5, -7.0]]))
    tensor([[ 0.,  0., -7.]])
    """

    bits: int = 8
    """8 or 4."""
    symmetric: bool = True
    """True: as wide below zero as above it. False: from the smallest to the largest value, where zero stays exact."""
    clip: float | None = None
    """Where a learned range begins. None: the range is dynamic."""

    def __post_init__(self) -> None:
        if self.bits not in (8, 4):
            raise ValueError(f"activations: bits: expected 8 or 4, got {self.bits!r}")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(f"activations: clip: expected where the learned range begins, above 0, got {self.clip!r}")

    @property
    def top(self) -> int:
        """The largest code. Codes go from -top to top where they are symmetric, else from 0 to top."""
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1

    def initial_range(self) -> torch.Tensor:
        """Return the learned range at the start: (clip,), or (low, high) where it is not symmetric."""
        assert self.clip is not None
        return torch.tensor([self.clip] if self.symmetric else [-self.clip, self.clip])

    def __call__(self, x: torch.Tensor, clip: torch.Tensor | None = None) -> torch.Tensor:
        """Round activations; the result has their dtype."""
        return self.values(*self.levels(x, clip), x.dtype)

    def encode(self, x: torch.Tensor, clip: torch.Tensor | None = None) -> Coded:
        """Round activations to bytes: int8 where they are symmetric, else uint8."""
        codes, scale, zero = self.levels(x, clip)
        return self.bytes(codes), scale, zero

    def decode(self, coded: Coded, dtype: torch.dtype) -> torch.Tensor:
        """Turn what ``encode`` returned back into activations."""
        codes, scale, zero = coded
        return self.values(codes.to(scale.dtype), scale, zero, dtype)

    def levels(self, x: torch.Tensor, clip: torch.Tensor | None = None) -> Coded:
        """Return codes (whole numbers in float32 or wider), scale and zero point."""
        x = x.detach()
        scale, zero = self._range(x, clip)
        codes = (at_least_float32(x) / scale).round_()
        if zero is not None:
            codes.add_(zero)
        if clip is not None or zero is not None:
            codes.clamp_(-self.top if self.symmetric else 0, self.top)
        return codes, scale, zero

    def bytes(self, codes: torch.Tensor) -> torch.Tensor:
        """Store codes in bytes. NaN gets lost, but the scale of its token is NaN."""
        return codes.to(torch.int8 if self.symmetric else torch.uint8)

    def values(self, codes: torch.Tensor, scale: torch.Tensor, zero: Any, dtype: torch.dtype) -> torch.Tensor:
        """Turn floating-point codes into activations. The codes are overwritten."""
        if zero is not None:
            codes.sub_(zero)
        return codes.mul_(scale).to(dtype)

    def gradients(self, grad: torch.Tensor, x: torch.Tensor, clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients of the activations and of the learned range."""
        value, inner = at_least_float32(x.detach()), at_least_float32(grad)
        low, high = self._learned_range(clip)
        below, above = value < low, value > high
        outside = below | above
        # Widening the range moves each level outwards: the slope is the rounding error over the range (LSQ).
        error = ((self(value, clip) - value) / (high - low) * inner).masked_fill_(outside, 0.0).sum()
        up, down = (inner * above).sum(), (inner * below).sum()
        clip_grad = (up - down + 2 * error).reshape(1) if self.symmetric else torch.stack([down - error, up + error])
        clip_grad = clip_grad / (x.shape[-1] * self.top) ** 0.5
        return grad.masked_fill(outside, 0.0), clip_grad.to(clip.dtype)

    def _learned_range(self, clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the lowest and the highest value of a learned range, which contains 0."""
        clip = at_least_float32(clip.detach())
        if self.symmetric:
            high = clip.clamp(min=_NARROWEST)
            return -high, high
        return clip[0].clamp(max=0), clip[1].clamp(min=_NARROWEST)

    def _range(self, x: torch.Tensor, clip: torch.Tensor | None) -> tuple[torch.Tensor, Any]:
        low: Any = None
        # Twice as fast on CPU as abs().amax(), and ten times as aminmax().
        least, most = at_least_float32(x.amin(-1, keepdim=True)), at_least_float32(x.amax(-1, keepdim=True))
        if self.symmetric:
            high = torch.maximum(most, -least) if clip is None else self._learned_range(clip)[1]
        else:
            # Zero stays within, and exact.
            low, high = (least.clamp(max=0), most.clamp(min=0)) if clip is None else self._learned_range(clip)
        scale = ((high if low is None else high - low) / self.top).clamp(min=1e-12)
        if clip is not None:
            # Clamping would turn infinity into the largest code, and a byte cannot be NaN.
            scale = torch.where(most.isfinite() & least.isfinite(), scale, torch.nan)
        return scale, None if low is None else (-low / scale).round()
