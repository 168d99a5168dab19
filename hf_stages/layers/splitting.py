"""Ternary weight splitting (BinaryBERT, https://arxiv.org/abs/2012.15701).

One ternary matrix becomes two binary ones, whose sum it is.
"""

from __future__ import annotations

import torch

from hf_stages.layers.quantizers import Quantizer


def split_ternary(
    weight: torch.Tensor, quantizer: Quantizer, scale: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return latents ``w1 + w2 = weight`` whose binary values add up to the ternary ones, and their scale.

    With TWN each half's own ``mean |w|`` is half the ternary scale, so no scale has to be stored and None is returned.
    With the other methods it is not: half the ternary scale of each group is returned, to be stored, and only the signs
    of the halves matter.
    """
    if quantizer.levels != "ternary":
        raise ValueError(f"split: expected ternary weights, got {quantizer.levels} ones")
    shape = weight.shape
    groups = quantizer.grouped(weight.detach())
    if weight.device.type == "meta":  # only shapes are asked for
        stored = None if quantizer.method == "twn" else quantizer.scales(groups, scale)[0].reshape(-1)
        return torch.empty_like(weight), torch.empty_like(weight), stored
    precise = groups.double()  # a and b below are differences of long sums
    # The layer computes in its own precision which weights are zero, and the scale.
    scales, threshold = quantizer.scales(groups, scale)
    ternary = quantizer.quantize_groups(groups, scales, threshold)
    zero = ternary == 0
    if quantizer.method == "twn":
        first, second = equal_means(precise, zero)
        return _as_weight(first, weight, shape), _as_weight(second, weight, shape), None
    half = scales.double() / 2
    # A weight that becomes zero is smaller than half the scale, so half a scale more or less decides both signs.
    first = torch.where(zero, precise / 2 + half, precise / 2)
    second = torch.where(zero, -(half - precise / 2), precise / 2)  # -0 where the weight is 0: the halves still cancel
    return _as_weight(first, weight, shape), _as_weight(second, weight, shape), half.reshape(-1).to(scales.dtype)


def equal_means(w: torch.Tensor, zero: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split by BinaryBERT's formula, for each group (a row here), so that both halves have mean |w| = scale / 2.

    A weight that is kept becomes a w and (1 - a) w. A weight that is zero in the ternary matrix goes to one half whole;
    the first half then gets b more, the second b less. Where all weights are zero, or none is, a or b is not used and
    would be 0/0.
    """
    size = w.abs()
    kept = ~zero
    positive, negative = zero & (w > 0), zero & (w <= 0)
    kept_sum = (size * kept).sum(-1, keepdim=True)
    count = kept.sum(-1, keepdim=True)
    balance = (size * positive).sum(-1, keepdim=True) - (size * negative).sum(-1, keepdim=True)
    a = torch.where(count > 0, 0.5 - balance / (2 * kept_sum).clamp(min=torch.finfo(w.dtype).tiny), 0.5)
    scale = kept_sum / count.clamp(min=1)
    b = (scale * w.shape[-1] - size.sum(-1, keepdim=True)) / (2 * zero.sum(-1, keepdim=True)).clamp(min=1)
    first = torch.where(kept, a * w, torch.where(positive, w + b, b))
    second = torch.where(kept, (1 - a) * w, torch.where(positive, -b, w - b))
    # Few large weights among many small ones of one sign push a out of (0, 1), and signs would flip. There the zeroed
    # weights go to the halves in turn, sorted by size, so that they cancel up to one weight.
    outside = (a <= 0.02) | (a >= 0.98)
    if not bool(outside.any()):
        return first, second
    sign = _alternating_signs(w, zero)
    balance = (sign * w * zero).sum(-1, keepdim=True)
    a = 0.5 - balance / (2 * kept_sum)
    other = torch.where(kept, a * w, w / 2 + sign * scale / 2)
    return torch.where(outside, other, first), torch.where(outside, w - other, second)


def _alternating_signs(w: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    """Return +1 or -1 for each zeroed weight, so that the sum of sign x w is at most the largest of them."""
    order = torch.where(zero, w.abs(), torch.inf).argsort(dim=-1, stable=True)
    alternating = torch.ones(w.shape[-1], dtype=w.dtype, device=w.device)
    alternating[1::2] = -1
    signs = torch.empty_like(w).scatter_(-1, order, alternating.expand_as(w))
    return signs * torch.copysign(torch.ones_like(w), w)


def _as_weight(groups: torch.Tensor, weight: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return groups.reshape(shape).to(weight.dtype)
