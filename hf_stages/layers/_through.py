"""Straight-through gradients, keeping nothing for the backward pass that a plain layer would not keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from hf_stages.layers.activations import Activations
from hf_stages.layers.quantizers import Quantizer


def measured(quantizer: Quantizer, latents: Sequence[Any], scales: Sequence[Any], transposed: bool) -> list[Any]:
    """Of each latent its groups' scales and thresholds: a pass over the weights that the backward pass need not repeat."""
    found: list[Any] = []
    for latent, scale in zip(latents, scales or [None] * len(latents), strict=True):
        rows = latent.detach().mT if transposed else latent.detach()
        found += quantizer.scales(quantizer.grouped(rows), scale)
    return found


def total(
    quantizer: Quantizer,
    latents: Sequence[Any],
    scales: Sequence[Any],
    strength: Any,
    transposed: bool,
    measures: Sequence[Any] | None = None,
) -> Any:
    """The effective weight: the sum of the quantized halves, or the one quantized matrix. Without gradient."""
    if measures is None:
        measures = measured(quantizer, latents, scales, transposed)
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
    """The gradients of the latents, then of their learned scales."""
    if not quantizer.learned:
        # The identity's, at any strength.
        return [grad.to(latent.dtype) for latent in latents]
    found = []
    for latent, scale in zip(latents, scales, strict=True):
        rows, inner = (latent.mT, grad.mT) if transposed else (latent, grad)
        of_latent, of_scale = quantizer.gradients(inner, rows, scale)
        assert of_scale is not None
        if strength is not None:
            of_latent = torch.lerp(inner.to(of_latent.dtype), of_latent, strength.to(of_latent.dtype))
            of_scale = of_scale * strength.to(of_scale.dtype)
        found.append((of_latent.mT if transposed else of_latent, of_scale))
    return [of_latent for of_latent, _ in found] + [of_scale for _, of_scale in found]


class FakeQuantize(torch.autograd.Function):
    """The effective weight with a gradient: for embeddings' rows, and for whoever reads ``layer.weight``."""

    @staticmethod
    def forward(ctx: Any, quantizer: Quantizer, strength: Any, transposed: bool, halves: int, *tensors: Any) -> Any:
        ctx.quantizer, ctx.transposed, ctx.halves = quantizer, transposed, halves
        ctx.dtypes = [t.dtype for t in tensors]
        if quantizer.learned:
            ctx.save_for_backward(_frozen(strength), *tensors)
        latents = tensors[:halves]
        return total(quantizer, latents, tensors[halves:], strength, transposed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Any) -> Any:
        if not ctx.quantizer.learned:
            return (None, None, None, None, *(grad.to(dtype) for dtype in ctx.dtypes))
        strength, *saved = ctx.saved_tensors
        latents, scales = saved[: ctx.halves], saved[ctx.halves :]
        found = latent_gradients(ctx.quantizer, grad, latents, scales, strength, ctx.transposed)
        return (None, None, None, None, *found)


class QuantizedLinear(torch.autograd.Function):
    """Quantize input and weight, multiply. Both are made again in the backward pass, from the latent weight, which is
    kept anyway, and from the input's codes of one byte: less than the input that a plain linear layer keeps.
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
        measures = measured(quantizer, latents, scales, transposed)
        weight = total(quantizer, latents, scales, strength, transposed, measures).to(x.dtype)
        entered, kept = _enter(ctx, x, clip, strength, activations)
        ctx.save_for_backward(bias, clip, _frozen(strength), *tensors, *measures, *kept)
        ctx.quantizer, ctx.activations, ctx.transposed = quantizer, activations, transposed
        ctx.halves, ctx.count, ctx.dtype = halves, len(tensors), x.dtype
        return F.linear(entered, weight.t() if transposed else weight, None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Any) -> Any:
        bias, clip, strength, *rest = ctx.saved_tensors
        tensors, measures = rest[: ctx.count], rest[ctx.count : ctx.count + 2 * ctx.halves]
        kept = rest[ctx.count + 2 * ctx.halves :]
        latents, scales = tensors[: ctx.halves], tensors[ctx.halves :]
        of_x: Any = None
        of_bias: Any = None
        of_clip: Any = None
        of_tensors: list[Any] = [None] * ctx.count
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[2]:
            weight = total(ctx.quantizer, latents, scales, strength, ctx.transposed, measures).to(grad.dtype)
            of_x = grad @ (weight.t() if ctx.transposed else weight)
            del weight
            if clip is not None:
                within, of_clip = ctx.activations.gradients(of_x, kept[0], clip)
                if strength is not None:
                    within, of_clip = torch.lerp(of_x, within, strength.to(of_x.dtype)), of_clip * strength
                of_x = within
        flat = grad.reshape(-1, grad.shape[-1])
        if any(ctx.needs_input_grad[8:]):
            entered = _entered(ctx, kept, clip, strength)
            entered = entered.reshape(flat.shape[0], entered.shape[-1])
            of_weight = entered.t() @ flat if ctx.transposed else flat.t() @ entered
            del entered
            of_tensors = latent_gradients(ctx.quantizer, of_weight, latents, scales, strength, ctx.transposed)
        if bias is not None and ctx.needs_input_grad[1]:
            of_bias = flat.sum(0).to(bias.dtype)
        return (of_x, of_bias, of_clip, None, None, None, None, None, *of_tensors)


def _frozen(strength: Any) -> Any:
    """The strength is set in place for the next update, perhaps before this one's backward pass."""
    return None if strength is None else strength.clone()


def _enter(ctx: Any, x: Any, clip: Any, strength: Any, activations: Activations | None) -> tuple[Any, tuple[Any, ...]]:
    """What is multiplied with the weight, and what of the input the backward pass will ask for."""
    of_x, _, of_clip, *_ = ctx.needs_input_grad
    asked = any(ctx.needs_input_grad[8:])
    if activations is None:
        return x, (x,) if asked else ()
    codes, scale, zero = activations.levels(x, clip)
    kept: tuple[Any, ...] = ()
    if clip is not None or strength is not None:
        # Codes do not tell what lies beyond the range, nor what is blended in.
        if asked or (clip is not None and (of_x or of_clip)):
            kept = (x,)
    elif asked:
        kept = activations.bytes(codes), scale, zero
    entered = activations.values(codes, scale, zero, x.dtype)
    return entered if strength is None else torch.lerp(x, entered, strength.to(x.dtype)), kept


def _entered(ctx: Any, kept: Sequence[Any], clip: Any, strength: Any) -> Any:
    """What was multiplied with the weight, once more."""
    activations = ctx.activations
    if activations is None:
        return kept[0]
    if strength is None and clip is None:
        return activations.decode(tuple(kept), ctx.dtype)
    entered = activations(kept[0], clip)
    return entered if strength is None else torch.lerp(kept[0], entered, strength.to(ctx.dtype))


class Rounded(torch.autograd.Function):
    """Rounded activations with a gradient, for layers that are not linear ones (experts)."""

    @staticmethod
    def forward(ctx: Any, x: Any, clip: Any, strength: Any, activations: Activations) -> Any:
        ctx.activations = activations
        ctx.save_for_backward(None if clip is None else x, clip, _frozen(strength))
        rounded = activations(x, clip)
        return rounded if strength is None else torch.lerp(x, rounded, strength.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Any) -> Any:
        x, clip, strength = ctx.saved_tensors
        if clip is None:
            return grad, None, None, None
        within, of_clip = ctx.activations.gradients(grad, x, clip)
        if strength is None:
            return within, of_clip, None, None
        return torch.lerp(grad, within, strength.to(grad.dtype)), of_clip * strength, None, None
