"""Autograd functions with straight-through gradients.

They keep no more memory for the backward pass than a plain layer would.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from hf_stages.layers.activations import Activations
from hf_stages.layers.quantizers import Quantizer


def group_scales(quantizer: Quantizer, latents: Sequence[Any], scales: Sequence[Any], transposed: bool) -> list[Any]:
    """Return scales and thresholds of each latent's groups, so that the backward pass need not compute them again."""
    found: list[Any] = []
    for latent, scale in zip(latents, scales or [None] * len(latents), strict=True):
        rows = latent.detach().mT if transposed else latent.detach()
        found += quantizer.scales(quantizer.grouped(rows), scale)
    return found


def effective_weight(
    quantizer: Quantizer,
    latents: Sequence[Any],
    scales: Sequence[Any],
    strength: Any,
    transposed: bool,
    measures: Sequence[Any] | None = None,
) -> Any:
    """Compute the effective weight, without gradient: one quantized matrix, or the sum of two quantized halves."""
    if measures is None:
        measures = group_scales(quantizer, latents, scales, transposed)
    found: Any = None
    for latent, own, threshold in zip(latents, measures[::2], measures[1::2], strict=True):
        latent = latent.detach()
        rows = latent.mT if transposed else latent
        levels = quantizer.quantize_with(rows, own, threshold)
        levels = levels.mT if transposed else levels
        if strength is not None:
            levels = torch.lerp(latent, levels, strength.to(latent.dtype))
        found = levels if found is None else found.add_(levels)
    return found


def latent_gradients(
    quantizer: Quantizer, grad: Any, latents: Sequence[Any], scales: Sequence[Any], strength: Any, transposed: bool
) -> list[Any]:
    """Return the gradients of the latents, then those of their learned scales."""
    if not quantizer.learned:
        # At any strength the gradient passes through unchanged.
        return [grad.to(latent.dtype) for latent in latents]
    found = []
    for latent, scale in zip(latents, scales, strict=True):
        rows, inner = (latent.mT, grad.mT) if transposed else (latent, grad)
        latent_grad, scale_grad = quantizer.gradients(inner, rows, scale)
        assert scale_grad is not None
        if strength is not None:
            latent_grad = torch.lerp(inner.to(latent_grad.dtype), latent_grad, strength.to(latent_grad.dtype))
            scale_grad = scale_grad * strength.to(scale_grad.dtype)
        found.append((latent_grad.mT if transposed else latent_grad, scale_grad))
    return [latent_grad for latent_grad, _ in found] + [scale_grad for _, scale_grad in found]


class FakeQuantize(torch.autograd.Function):
    """The effective weight with a gradient: for rows of embeddings, and wherever ``layer.weight`` is read."""

    @staticmethod
    def forward(ctx: Any, quantizer: Quantizer, strength: Any, transposed: bool, halves: int, *tensors: Any) -> Any:
        ctx.quantizer, ctx.transposed, ctx.halves = quantizer, transposed, halves
        ctx.dtypes = [t.dtype for t in tensors]
        if quantizer.learned:
            ctx.save_for_backward(_copied(strength), *tensors)
        latents = tensors[:halves]
        return effective_weight(quantizer, latents, tensors[halves:], strength, transposed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Any) -> Any:
        if not ctx.quantizer.learned:
            return (None, None, None, None, *(grad.to(dtype) for dtype in ctx.dtypes))
        strength, *saved = ctx.saved_tensors
        latents, scales = saved[: ctx.halves], saved[ctx.halves :]
        found = latent_gradients(ctx.quantizer, grad, latents, scales, strength, ctx.transposed)
        return (None, None, None, None, *found)


class LinearFunction(torch.autograd.Function):
    """A linear layer on a quantized input and a quantized weight.

    The backward pass computes both again: the weight from the latent weight, which is in memory anyway, and the input
    from its codes of one byte each. A plain linear layer keeps the whole input.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Any,
        bias: Any,
        clip: Any,
        strength: Any,
        quantizer: Quantizer,
        activations: Activations | None,
        transposed: bool,
        halves: int,
        *tensors: Any,
    ) -> Any:
        latents, scales = tensors[:halves], tensors[halves:]
        measures = group_scales(quantizer, latents, scales, transposed)
        weight = effective_weight(quantizer, latents, scales, strength, transposed, measures).to(x.dtype)
        entered, stored = _rounded_input(ctx, x, clip, strength, activations)
        ctx.save_for_backward(bias, clip, _copied(strength), *tensors, *measures, *stored)
        ctx.quantizer, ctx.activations, ctx.transposed = quantizer, activations, transposed
        ctx.halves, ctx.count, ctx.dtype = halves, len(tensors), x.dtype
        return F.linear(entered, weight.t() if transposed else weight, None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Any) -> Any:
        bias, clip, strength, *rest = ctx.saved_tensors
        tensors, measures = rest[: ctx.count], rest[ctx.count : ctx.count + 2 * ctx.halves]
        stored = rest[ctx.count + 2 * ctx.halves :]
        latents, scales = tensors[: ctx.halves], tensors[ctx.halves :]
        x_grad: Any = None
        bias_grad: Any = None
        clip_grad: Any = None
        tensor_grads: list[Any] = [None] * ctx.count
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[2]:
            weight = effective_weight(ctx.quantizer, latents, scales, strength, ctx.transposed, measures).to(grad.dtype)
            x_grad = grad @ (weight.t() if ctx.transposed else weight)
            del weight
            if clip is not None:
                within, clip_grad = ctx.activations.gradients(x_grad, stored[0], clip)
                if strength is not None:
                    within, clip_grad = torch.lerp(x_grad, within, strength.to(x_grad.dtype)), clip_grad * strength
                x_grad = within
        flat = grad.reshape(-1, grad.shape[-1])
        if any(ctx.needs_input_grad[8:]):
            entered = _rounded_input_again(ctx, stored, clip, strength)
            entered = entered.reshape(flat.shape[0], entered.shape[-1])
            weight_grad = entered.t() @ flat if ctx.transposed else flat.t() @ entered
            del entered
            tensor_grads = latent_gradients(ctx.quantizer, weight_grad, latents, scales, strength, ctx.transposed)
        if bias is not None and ctx.needs_input_grad[1]:
            bias_grad = flat.sum(0).to(bias.dtype)
        return (x_grad, bias_grad, clip_grad, None, None, None, None, None, *tensor_grads)


def _copied(strength: Any) -> Any:
    """Copy the strength: it is changed in place for the next update, perhaps before this update's backward pass."""
    return None if strength is None else strength.clone()


def _rounded_input(
    ctx: Any, x: Any, clip: Any, strength: Any, activations: Activations | None
) -> tuple[Any, tuple[Any, ...]]:
    """Return what is multiplied with the weight, and what the backward pass needs of the input."""
    x_needs_grad, _, clip_needs_grad, *_ = ctx.needs_input_grad
    weights_need_grad = any(ctx.needs_input_grad[8:])
    if activations is None:
        return x, (x,) if weights_need_grad else ()
    codes, scale, zero = activations.levels(x, clip)
    stored: tuple[Any, ...] = ()
    if clip is not None or strength is not None:
        # Codes show neither what lies beyond the range nor what is blended in.
        if weights_need_grad or (clip is not None and (x_needs_grad or clip_needs_grad)):
            stored = (x,)
    elif weights_need_grad:
        stored = activations.bytes(codes), scale, zero
    entered = activations.values(codes, scale, zero, x.dtype)
    return entered if strength is None else torch.lerp(x, entered, strength.to(x.dtype)), stored


def _rounded_input_again(ctx: Any, stored: Sequence[Any], clip: Any, strength: Any) -> Any:
    """Compute again what was multiplied with the weight."""
    activations = ctx.activations
    if activations is None:
        return stored[0]
    if strength is None and clip is None:
        return activations.decode(tuple(stored), ctx.dtype)
    entered = activations(stored[0], clip)
    return entered if strength is None else torch.lerp(stored[0], entered, strength.to(ctx.dtype))


class RoundActivations(torch.autograd.Function):
    """Rounded activations with a gradient, for layers that are not linear ones (experts)."""

    @staticmethod
    def forward(ctx: Any, x: Any, clip: Any, strength: Any, activations: Activations) -> Any:
        ctx.activations = activations
        ctx.save_for_backward(None if clip is None else x, clip, _copied(strength))
        rounded = activations(x, clip)
        return rounded if strength is None else torch.lerp(x, rounded, strength.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Any) -> Any:
        x, clip, strength = ctx.saved_tensors
        if clip is None:
            return grad, None, None, None
        within, clip_grad = ctx.activations.gradients(grad, x, clip)
        if strength is None:
            return within, clip_grad, None, None
        return torch.lerp(grad, within, strength.to(grad.dtype)), clip_grad * strength, None, None
