"""Ternary weight splitting (BinaryBERT, https://arxiv.org/abs/2012.15701): one ternary matrix into two binary ones."""

from __future__ import annotations

import torch

from hf_stages.layers.quantizers import Quantizer


def split_ternary(
    weight: torch.Tensor, quantizer: Quantizer, scale: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Latents ``w1 + w2 = weight`` whose binary values add up to the ternary one, and their common scale.

    For TWN that scale is what both halves' own ``mean |w|`` gives, half the ternary scale, and None is returned. Of the
    other quantizers the ternary scale is no mean over kept weights: half of it is returned, to be stored (one for each
    group), and only the halves' signs matter.
    """
    if quantizer.levels != "ternary":
        raise ValueError(f"split: expected ternary weights, got {quantizer.levels} ones")
    shape = weight.shape
    groups = quantizer.grouped(weight.detach())
    if weight.device.type == "meta":  # a dry run wants shapes
        stored = None if quantizer.method == "twn" else quantizer.scales(groups, scale)[0].reshape(-1)
        return torch.empty_like(weight), torch.empty_like(weight), stored
    working = groups.double()  # a and b are differences of long sums
    # Which weights are zero, and the scale, are those that the layer computes in its own precision.
    scales, threshold = quantizer.scales(groups, scale)
    ternary = quantizer.quantize_groups(groups, scales, threshold)
    zero = ternary == 0
    if quantizer.method == "twn":
        first, second = equal_means(working, zero)
        return _whole(first, weight, shape), _whole(second, weight, shape), None
    half = scales.double() / 2
    # A zeroed weight is smaller than half the scale, so adding and taking away half a scale decides both signs.
    first = torch.where(zero, working / 2 + half, working / 2)
    second = torch.where(zero, -(half - working / 2), working / 2)  # -0 where all is 0: the halves still cancel
    return _whole(first, weight, shape), _whole(second, weight, shape), half.reshape(-1).to(scales.dtype)


def equal_means(w: torch.Tensor, zero: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """BinaryBERT's closed form, for each group (a row here).

    Kept weights are shared out as a w and (1 - a) w; a zeroed one gets b added to the half that has it. a and b are such
    that both halves have mean |w| = scale / 2. Where all are zero or none is, the unused of a and b would be 0/0.
    """
    size = w.abs()
    kept = ~zero
    up, down = zero & (w > 0), zero & (w <= 0)
    of_kept = (size * kept).sum(-1, keepdim=True)
    count = kept.sum(-1, keepdim=True)
    lean = (size * up).sum(-1, keepdim=True) - (size * down).sum(-1, keepdim=True)
    a = torch.where(count > 0, 0.5 - lean / (2 * of_kept).clamp(min=torch.finfo(w.dtype).tiny), 0.5)
    scale = of_kept / count.clamp(min=1)
    b = (scale * w.shape[-1] - size.sum(-1, keepdim=True)) / (2 * zero.sum(-1, keepdim=True)).clamp(min=1)
    first = torch.where(kept, a * w, torch.where(up, w + b, b))
    second = torch.where(kept, (1 - a) * w, torch.where(up, -b, w - b))
    # Few large weights among many of one sign below the threshold push a out of (0, 1): signs would flip. There each
    # zeroed weight leans to one half or the other in turn, by size, so that the leanings cancel up to one weight.
    outside = (a <= 0.02) | (a >= 0.98)
    if not bool(outside.any()):
        return first, second
    turn = _in_turn(w, zero)
    lean = (turn * w * zero).sum(-1, keepdim=True)
    a = 0.5 - lean / (2 * of_kept)
    other = torch.where(kept, a * w, w / 2 + turn * scale / 2)
    return torch.where(outside, other, first), torch.where(outside, w - other, second)


def _in_turn(w: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
    """+1 or -1 for each zeroed weight, so that the sum of turn x w is at most the largest of them."""
    order = torch.where(zero, w.abs(), torch.inf).argsort(dim=-1, stable=True)
    alternating = torch.ones(w.shape[-1], dtype=w.dtype, device=w.device)
    alternating[1::2] = -1
    turns = torch.empty_like(w).scatter_(-1, order, alternating.expand_as(w))
    return turns * torch.copysign(torch.ones_like(w), w)


def _whole(groups: torch.Tensor, weight: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return groups.reshape(shape).to(weight.dtype)
