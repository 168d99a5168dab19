"""Activations in 8 or 4 bits: each token with a range of its own, or all within a learned one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

Coded = tuple[torch.Tensor, torch.Tensor, Any]
"""Codes (one byte each), scale, zero point (None where it is 0)."""


@dataclass(frozen=True)
class Activations:
    """How what enters a quantized layer is rounded.

    Dynamic (``clip=None``): each token's range is its own largest value, so nothing is clipped and the gradient passes
    straight through. Learned: the range begins at ``clip`` and is trained (LSQ's gradient); the gradient of an
    activation beyond it is zero.

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
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"activations: clip: expected where the learned range begins, above 0, got {self.clip!r}")

    @property
    def top(self) -> int:
        """The largest code: codes run from -top to top (symmetric), else from 0 to top."""
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1

    def initial(self) -> torch.Tensor:
        """The learned range at the start: (clip,), or (low, high) where it is not symmetric."""
        assert self.clip is not None
        return torch.tensor([self.clip] if self.symmetric else [-self.clip, self.clip])

    def __call__(self, x: torch.Tensor, clip: torch.Tensor | None = None) -> torch.Tensor:
        """The rounded activations, in their own dtype."""
        return self.decode(self.encode(x, clip), x.dtype)

    def encode(self, x: torch.Tensor, clip: torch.Tensor | None = None) -> Coded:
        """To bytes: symmetric int8, else uint8."""
        x = x.detach()
        scale, zero = self._range(x, clip)
        codes = (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x) / scale
        codes.round_()
        if zero is not None:
            codes.add_(zero)
        if clip is not None or zero is not None:
            codes.clamp_(-self.top if self.symmetric else 0, self.top)
        return codes.to(torch.int8 if self.symmetric else torch.uint8), scale, zero

    def decode(self, coded: Coded, dtype: torch.dtype) -> torch.Tensor:
        codes, scale, zero = coded
        values = codes.to(scale.dtype)
        if zero is not None:
            values.sub_(zero)
        return values.mul_(scale).to(dtype)

    def gradients(self, grad: torch.Tensor, x: torch.Tensor, clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """With a learned range: the gradients of the activations and of the range."""
        low, high = (-clip, clip) if self.symmetric else (clip[0], clip[1])
        value, inner = x.float(), grad.float()
        below, above = value < low, value > high
        # Within the range a wider one moves each level outwards: the rounding error over the range is the slope (LSQ).
        error = torch.where(below | above, 0.0, (self(value, clip) - value) / (high - low)) * inner
        scale = 1 / (x.shape[-1] * self.top) ** 0.5
        up, down = (inner * above).sum(), (inner * below).sum()
        if self.symmetric:
            of_clip = (up - down + 2 * error.sum()).reshape(1)
        else:
            of_clip = torch.stack([down - error.sum(), up + error.sum()])
        inside = ~(below | above)
        return (inner * inside).to(grad.dtype), (of_clip * scale).to(clip.dtype)

    def _range(self, x: torch.Tensor, clip: torch.Tensor | None) -> tuple[torch.Tensor, Any]:
        if clip is not None:
            clip = clip.detach().float()
            low, high = (None, clip.clamp(min=1e-5)) if self.symmetric else (clip[0].clamp(max=0), clip[1].clamp(min=0))
        elif self.symmetric:
            low, high = None, x.abs().amax(-1, keepdim=True).float()
        else:
            least, most = torch.aminmax(x, dim=-1, keepdim=True)
            low, high = least.float().clamp(max=0), most.float().clamp(min=0)  # zero stays within, and exact
        scale = ((high if low is None else high - low) / self.top).clamp(min=1e-12)
        return scale, None if low is None else (-low / scale).round()
