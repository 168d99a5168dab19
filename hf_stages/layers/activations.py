"""Activations in 8 or 4 bits: each token with a range of its own, or all within a learned one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from hf_stages.layers._numbers import wide

_NARROWEST = 1e-5
"""A learned range that training drove to nothing counts as this wide."""

Coded = tuple[torch.Tensor, torch.Tensor, Any]
"""Codes (one byte each), scale, zero point (None where it is 0)."""


@dataclass(frozen=True)
class Activations:
    """How what enters a quantized layer is rounded.

    Dynamic (``clip=None``): each token's range is its own largest value, so nothing is clipped and the gradient passes
    straight through. Learned: the range begins at ``clip`` and is trained (LSQ's gradient); the gradient of an
    activation beyond it is zero. Either way a token with NaN or infinity in it comes out as NaN.

    >>> Activations(bits=4)(torch.tensor([[0.0, 0.5, -7.0]]))
    tensor([[ 0.,  0., -7.]])
    """

    bits: int = 8
    symmetric: bool = True
    """Levels around zero; False spends all levels between the smallest and the largest value (zero stays exact)."""
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.bits not in (8, 4):
            raise ValueError(f"activations: bits: expected 8 or 4, got {self.bits!r}")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(f"activations: clip: expected where the learned range begins, above 0, got {self.clip!r}")

    @property
    def top(self) -> int:
        """The largest code: codes run from -top to top (symmetric), else from 0 to top."""
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1

    def initial_range(self) -> torch.Tensor:
        """The learned range at the start: (clip,), or (low, high) where it is not symmetric."""
        assert self.clip is not None
        return torch.tensor([self.clip] if self.symmetric else [-self.clip, self.clip])

    def __call__(self, x: torch.Tensor, clip: torch.Tensor | None = None) -> torch.Tensor:
        """The rounded activations, in their own dtype."""
        return self.values(*self.levels(x, clip), x.dtype)

    def encode(self, x: torch.Tensor, clip: torch.Tensor | None = None) -> Coded:
        """To bytes: symmetric int8, else uint8."""
        codes, scale, zero = self.levels(x, clip)
        return self.bytes(codes), scale, zero

    def decode(self, coded: Coded, dtype: torch.dtype) -> torch.Tensor:
        codes, scale, zero = coded
        return self.values(codes.to(scale.dtype), scale, zero, dtype)

    def levels(self, x: torch.Tensor, clip: torch.Tensor | None = None) -> Coded:
        """Codes as whole floating-point numbers, at least float32; scale; zero point."""
        x = x.detach()
        scale, zero = self._range(x, clip)
        codes = (wide(x) / scale).round_()
        if zero is not None:
            codes.add_(zero)
        if clip is not None or zero is not None:
            codes.clamp_(-self.top if self.symmetric else 0, self.top)
        return codes, scale, zero

    def bytes(self, codes: torch.Tensor) -> torch.Tensor:
        # No byte says NaN; the scale of a token that has some does.
        return codes.to(torch.int8 if self.symmetric else torch.uint8)

    def values(self, codes: torch.Tensor, scale: torch.Tensor, zero: Any, dtype: torch.dtype) -> torch.Tensor:
        """What floating-point codes stand for; they are overwritten."""
        if zero is not None:
            codes.sub_(zero)
        return codes.mul_(scale).to(dtype)

    def gradients(self, grad: torch.Tensor, x: torch.Tensor, clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """With a learned range: the gradients of the activations and of the range."""
        value, inner = wide(x.detach()), wide(grad)
        low, high = self._learned(clip)
        below, above = value < low, value > high
        outside = below | above
        # Within the range a wider one moves each level outwards: the rounding error over the range is the slope (LSQ).
        error = ((self(value, clip) - value) / (high - low) * inner).masked_fill_(outside, 0.0).sum()
        up, down = (inner * above).sum(), (inner * below).sum()
        of_clip = (up - down + 2 * error).reshape(1) if self.symmetric else torch.stack([down - error, up + error])
        of_clip = of_clip / (x.shape[-1] * self.top) ** 0.5
        return grad.masked_fill(outside, 0.0), of_clip.to(clip.dtype)

    def _learned(self, clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Lowest and highest value of a learned range, 0 among them."""
        clip = wide(clip.detach())
        if self.symmetric:
            high = clip.clamp(min=_NARROWEST)
            return -high, high
        return clip[0].clamp(max=0), clip[1].clamp(min=_NARROWEST)

    def _range(self, x: torch.Tensor, clip: torch.Tensor | None) -> tuple[torch.Tensor, Any]:
        low: Any = None
        # Twice as fast on CPU as abs().amax(), and ten times as aminmax().
        least, most = wide(x.amin(-1, keepdim=True)), wide(x.amax(-1, keepdim=True))
        if self.symmetric:
            high = torch.maximum(most, -least) if clip is None else self._learned(clip)[1]
        else:
            # Zero stays within, and exact.
            low, high = (least.clamp(max=0), most.clamp(min=0)) if clip is None else self._learned(clip)
        scale = ((high if low is None else high - low) / self.top).clamp(min=1e-12)
        if clip is not None:
            # Clamping would make infinity the largest code, and a byte cannot be NaN.
            scale = torch.where(most.isfinite() & least.isfinite(), scale, torch.nan)
        return scale, None if low is None else (-low / scale).round()
