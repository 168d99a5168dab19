"""Weights in one or two bits: which level each weight takes, and the scale that its level is multiplied with.

Levels and scales are functions of the latent (full-precision) weights. A weight ``w`` in a group with scale ``s``
becomes ``-s`` or ``+s``. Ternary weights become zero where ``|w|`` does not exceed the group's threshold:

=========  =======================  ==================================================  ================================
method     scale                    threshold                                           from =========
=======================  ==================================================  ================================ mean
mean \\|w\\|               none: binary                                        XNOR-Net, BinaryBERT, XTC twn        mean
of the kept \\|w\\|   0.7 mean \\|w\\|                                      TWN (https://arxiv.org/abs/1605.04711)
absmean    mean \\|w\\|               0.5 mean \\|w\\|: rounding to the nearest level       BitNet b1.58 (2402.17764)
learned    a trained parameter      half the scale (ternary); none (binary)             ParetoQ (2502.02631), LSQ
=========  =======================  ==================================================  ================================
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_stages.layers._numbers import at_least_float32, mean_abs

_METHODS = {"binary": ("mean", "learned"), "ternary": ("twn", "absmean", "learned")}
METHOD = {levels: methods[0] for levels, methods in _METHODS.items()}
"""The default method of each kind of levels."""
_SMALLEST = 1e-8
"""The smallest learned scale, as training may drive it to zero or below.

Binary scales get half of it: they may be halves.
"""


@dataclass(frozen=True)
class Quantizer:
    """How a weight matrix is quantized. Rows are a linear layer's outputs and an embedding's entries.

    >>> q = Quantizer("ternary", "twn", "row")
    >>> q(torch.tensor([[0.1, -0.9, 1.1], [0.0, 0.0, 0.0]]))
    tensor([[ 0., -1.,  1.],
            [ 0.,  0.,  0.]])
    """

    levels: str
    """``binary`` or ``ternary``."""
    method: str
    """How scales are made: one of the table above."""
    per: str | int = "row"
    """Which weights share a scale: ``tensor``, ``row``, or a number of neighbours in a row."""

    def __post_init__(self) -> None:
        if self.levels not in _METHODS:
            raise ValueError(f"levels: expected one of {', '.join(_METHODS)}, got {self.levels!r}")
        if self.method not in _METHODS[self.levels]:
            known = ", ".join(map(repr, _METHODS[self.levels]))
            raise ValueError(f"method: expected one of {known} for {self.levels} weights, got {self.method!r}")
        size = isinstance(self.per, int) and not isinstance(self.per, bool) and self.per > 0
        if self.per not in ("tensor", "row") and not size:
            raise ValueError(f"per: expected 'tensor', 'row' or the size of a group such as 64, got {self.per!r}")

    @property
    def learned(self) -> bool:
        """Whether scales are trained parameters."""
        return self.method == "learned"

    def grouped(self, weight: torch.Tensor) -> torch.Tensor:
        """Reshape a weight to (groups, weights that share a scale), as a view where possible.

        A stack of matrices, as experts have it, is quantized matrix by matrix.
        """
        if self.per == "tensor":
            return weight.reshape(weight.shape[0] if weight.dim() == 3 else 1, -1)
        return weight if self.per == "row" and weight.dim() == 2 else weight.reshape(-1, self.group_size(weight.shape))

    def group_size(self, shape: torch.Size | tuple[int, ...]) -> int:
        """Return how many weights of a matrix share a scale; ValueError where groups do not fill its rows."""
        columns = shape[-1]
        if self.per == "tensor":
            return torch.Size(shape[-2:]).numel()
        if self.per == "row":
            return columns
        assert isinstance(self.per, int)
        if columns % self.per:
            raise ValueError(
                f"per: groups of {self.per} do not fill rows of {columns} weights; choose a divisor of {columns}, "
                "or 'row'"
            )
        return self.per

    def __call__(self, weight: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the effective weight, in the same shape and dtype. ``scale`` holds learned scales, one a group."""
        return self.quantize_with(weight, *self.scales(self.grouped(weight.detach()), scale))

    def quantize_with(self, weight: torch.Tensor, scales: torch.Tensor, threshold: torch.Tensor | None) -> torch.Tensor:
        """Compute the effective weight from scales and thresholds that are known already."""
        groups = self.grouped(weight.detach())
        return self.quantize_groups(groups, scales.to(groups.dtype), threshold).reshape(weight.shape)

    def scales(
        self, groups: torch.Tensor, scale: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return scale and threshold of each group, as columns. Learned scales are given in ``scale``."""
        if self.learned:
            assert scale is not None
            scales = at_least_float32(scale.detach()).reshape(-1, 1)  # 16 bits would round the smallest scale to zero
            if self.levels == "binary":
                return scales.clamp(min=_SMALLEST / 2), None
            scales = scales.clamp(min=_SMALLEST)
            return scales, scales / 2
        mean = mean_abs(groups)
        if self.levels == "binary":
            return mean, None
        if self.method == "absmean":
            return mean, mean / 2
        threshold = 0.7 * mean
        size = groups.abs()
        # In place and as numbers: ten times faster on a CPU than a mask of bools, here and below.
        above = size.clone().gt_(threshold)
        # In a group of zeros none is above: its scale is 0, not 0/0.
        count = above.sum(-1, keepdim=True, dtype=mean.dtype).clamp(min=1)
        return size.mul_(above).sum(-1, keepdim=True, dtype=mean.dtype) / count, threshold

    def quantize_groups(
        self, weight: torch.Tensor, scales: torch.Tensor, threshold: torch.Tensor | None
    ) -> torch.Tensor:
        """Quantize groups with given scales.

        A binary zero takes the sign of its sign bit: +0 becomes +s, -0 becomes -s.
        """
        signed = torch.copysign(scales, weight)
        if threshold is None:
            return signed
        return signed.mul_(weight.abs().gt_(threshold))  # NaN and infinity make the scale NaN, and 0 x NaN is NaN

    def codes(self, weight: torch.Tensor, scale: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return levels -1, 0 and 1 in the weight's shape (int8), and the scale of each group."""
        groups = self.grouped(weight.detach())
        scales, threshold = self.scales(groups, scale)
        levels = self.quantize_groups(groups, torch.ones_like(scales), threshold)
        return levels.reshape(weight.shape).to(torch.int8), scales.reshape(-1)

    def initial_scales(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the first learned scales: mean |w| of each group for binary, two thirds of max |w| for ternary.

        ParetoQ writes its ternary levels as 2/3 of a clipping value that begins at max |w|. Here the scale is the
        level.
        """
        groups = at_least_float32(self.grouped(weight.detach()))
        scales = mean_abs(groups) if self.levels == "binary" else groups.abs().amax(-1, keepdim=True) / 1.5
        return scales.reshape(-1).clamp(min=_SMALLEST)

    def gradients(
        self, grad: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Turn the gradient of the effective weight into those of the latent weight and of the learned scale.

        The gradient passes straight through, as if quantizing were the identity, without clipping (XTC, BinaryBERT,
        BitNet). Learned scales get the gradient of LSQ, divided by the root of the group's size; a ternary latent
        weight beyond 1.5 scales then gets no gradient (ParetoQ). ParetoQ also cuts the gradient of binary weights
        beyond one scale, which at the start are 42 % of all. That is not done here.
        """
        if not self.learned:
            return grad.to(weight.dtype), None
        assert scale is not None
        groups, inner = at_least_float32(self.grouped(weight.detach())), at_least_float32(self.grouped(grad))
        scales, threshold = self.scales(groups, scale)
        levels = self.quantize_groups(groups, torch.ones_like(scales), threshold)
        ratio = groups / scales
        slope = levels
        latent_grad = inner
        if self.levels == "ternary":
            inside = ratio.abs() <= 1.5
            slope, latent_grad = torch.where(inside, levels - ratio, levels), inner * inside
        scale_grad = (inner * slope).sum(-1) / groups.shape[-1] ** 0.5
        return latent_grad.reshape(weight.shape).to(weight.dtype), scale_grad.reshape(scale.shape).to(scale.dtype)
