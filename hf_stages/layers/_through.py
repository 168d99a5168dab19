"""Straight-through gradients, keeping nothing for the backward pass that a plain layer would not keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from hf_stages.layers.activations import Activations
from hf_stages.layers.quantizers import Quantizer


def total(quantizer: Quantizer, latents: Sequence[Any], scales: Sequence[Any], strength: Any, transposed: bool) -> Any:
    """The effective weight: the sum of the quantized halves, or the one quantized matrix. Without gradient."""
    found: Any = None
    for latent, scale in zip(latents, scales or [None] * len(latents), strict=True):
        latent = latent.detach()
        rows = latent.mT if transposed else latent
        levels = quantizer(rows, scale)
        levels = levels.mT if transposed else levels
        if strength is not None:
            levels = torch.lerp(latent, levels, strength.to(latent.dtype))
        found = levels if found is None else found.add_(levels)
    return found


def latent_gradients(
    quantizer: Quantizer, grad: Any, latents: Sequence[Any], scales: Sequence[Any], transposed: bool
) -> list[Any]:
    """The gradients of the latents, then of their learned scales. Blending in by strength does not change them."""
    if not quantizer.learned:
        return [grad.to(latent.dtype) for latent in latents] + [None] * len(scales)
    found = []
    for latent, scale in zip(latents, scales, strict=True):
        rows, inner = (latent.mT, grad.mT) if transposed else (latent, grad)
        of_latent, of_scale = quantizer.gradients(inner, rows, scale)
        found.append((of_latent.mT if transposed else of_latent, of_scale))
    return [of_latent for of_latent, _ in found] + [of_scale for _, of_scale in found]


class FakeQuantize(torch.autograd.Function):
    """The effective weight with a gradient: for embeddings' rows, experts' stacks and whoever reads ``layer.weight``."""

    @staticmethod
    def forward(ctx: Any, quantizer: Quantizer, strength: Any, transposed: bool, halves: int, *tensors: Any) -> Any:
        ctx.quantizer, ctx.transposed, ctx.halves = quantizer, transposed, halves
        ctx.save_for_backward(*(tensors if quantizer.learned else ()))
        ctx.dtypes = [t.dtype for t in tensors]
        return total(quantizer, tensors[:halves], tensors[halves:], strength, transposed)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        if not ctx.quantizer.learned:
            return (None, None, None, None, *(grad.to(dtype) for dtype in ctx.dtypes))
        saved = ctx.saved_tensors
        found = latent_gradients(ctx.quantizer, grad, saved[: ctx.halves], saved[ctx.halves :], ctx.transposed)
        return (None, None, None, None, *found)


class QuantizedLinear(torch.autograd.Function):
    """Quantize input and weight, multiply. Both are quantized again in the backward pass, from the latent weight, which
    is kept anyway, and from the input's codes of one byte: less than the input that a plain linear layer keeps.
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
        weight = total(quantizer, tensors[:halves], tensors[halves:], strength, transposed).to(x.dtype)
        if activations is None:
            entered, kept = x, (x,)
        else:
            coded = activations.encode(x, clip)
            entered = activations.decode(coded, x.dtype)
            if strength is not None:
                entered = torch.lerp(x, entered, strength.to(x.dtype))
            whole = strength is not None or clip is not None  # then codes do not tell what is to be known
            kept = (x,) if whole else tuple(part for part in coded if part is not None)
        ctx.save_for_backward(bias, clip, strength, *tensors, *kept)
        ctx.quantizer, ctx.activations, ctx.transposed = quantizer, activations, transposed
        ctx.halves, ctx.count, ctx.dtype = halves, len(tensors), x.dtype
        return F.linear(entered, weight.t() if transposed else weight, None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        bias, clip, strength, *rest = ctx.saved_tensors
        tensors, kept = rest[: ctx.count], rest[ctx.count :]
        latents, scales = tensors[: ctx.halves], tensors[ctx.halves :]
        of_x: Any = None
        of_bias: Any = None
        of_clip: Any = None
        of_tensors: list[Any] = [None] * ctx.count
        if ctx.needs_input_grad[0] or (clip is not None and ctx.needs_input_grad[2]):
            weight = total(ctx.quantizer, latents, scales, strength, ctx.transposed).to(grad.dtype)
            of_x = grad @ (weight.t() if ctx.transposed else weight)
            del weight
            if clip is not None:
                within, of_clip = ctx.activations.gradients(of_x, kept[0], clip)
                if strength is None:
                    of_x = within
                else:
                    of_x, of_clip = torch.lerp(of_x, within, strength.to(of_x.dtype)), of_clip * strength
        flat = grad.reshape(-1, grad.shape[-1])
        if any(ctx.needs_input_grad[8:]):
            entered = _entered(ctx, kept, clip, strength).reshape(flat.shape[0], -1)
            of_weight = entered.t() @ flat if ctx.transposed else flat.t() @ entered
            of_tensors = latent_gradients(ctx.quantizer, of_weight, latents, scales, ctx.transposed)
        if bias is not None and ctx.needs_input_grad[1]:
            of_bias = flat.sum(0).to(bias.dtype)
        return (of_x, of_bias, of_clip, None, None, None, None, None, *of_tensors)


def _entered(ctx: Any, kept: Sequence[Any], clip: Any, strength: Any) -> Any:
    """What was multiplied with the weight, once more."""
    activations = ctx.activations
    if activations is None:
        return kept[0]
    if strength is None and clip is None:
        codes, scale, zero = kept if len(kept) == 3 else (*kept, None)
        return activations.decode((codes, scale, zero), ctx.dtype)
    entered = activations(kept[0], clip)
    return entered if strength is None else torch.lerp(kept[0], entered, strength.to(ctx.dtype))


class Rounded(torch.autograd.Function):
    """Rounded activations with a gradient, for layers that are not linear ones (experts)."""

    @staticmethod
    def forward(ctx: Any, x: Any, clip: Any, strength: Any, activations: Activations) -> Any:
        ctx.activations = activations
        ctx.save_for_backward(None if clip is None else x, clip, strength)
        rounded = activations(x, clip)
        return rounded if strength is None else torch.lerp(x, rounded, strength.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, clip, strength = ctx.saved_tensors
        if clip is None:
            return grad, None, None, None
        within, of_clip = ctx.activations.gradients(grad, x, clip)
        if strength is None:
            return within, of_clip, None, None
        return torch.lerp(grad, within, strength.to(grad.dtype)), of_clip * strength, None, None
