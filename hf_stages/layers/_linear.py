"""The common base of binary, ternary and split linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D
from typing_extensions import Self

from hf_stages.layers._straight_through import LinearFunction, RoundActivations
from hf_stages.layers.activations import Activations
from hf_stages.layers.quantized import CLIP, Quantized, as_activations, initial_latents, latents_of
from hf_stages.layers.quantizers import METHOD, Quantizer


class QuantizedLinear(Quantized, nn.Linear):
    """``y = Q(x) Q(w)ᵀ + b``. A subclass of ``nn.Linear``, which is what PEFT and patterns by class look for."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        method: str | None = None,
        per: str | int = "row",
        activations: int | Activations | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        plain = nn.Linear(in_features, out_features, bias, device=device, dtype=dtype)
        quantizer = Quantizer(self.levels, method or METHOD[self.levels], per)
        latents, scales = initial_latents(plain.weight, quantizer, self.split)
        self._build(quantizer, latents, scales, plain.bias, as_activations(activations))

    @classmethod
    def from_layer(
        cls,
        layer: nn.Module,
        quantizer: Quantizer,
        activations: Activations | None = None,
        latents: Sequence[torch.Tensor] | None = None,
        scales: Sequence[torch.Tensor] = (),
    ) -> Self:
        """Make the quantized layer that replaces ``layer``: its weight becomes the latent weight, its bias is kept."""
        own = cls.__new__(cls)
        transposed = isinstance(layer, Conv1D) or bool(getattr(layer, "transposed", False))
        latents = latents_of(layer) if latents is None else latents
        own._build(quantizer, latents, scales, layer.bias, activations, transposed)
        if activations is not None and activations == getattr(layer, "activations", None):
            own.activation_clip = layer.activation_clip  # the trained range goes on
        return own.train(layer.training)

    def _build(
        self,
        quantizer: Quantizer,
        latents: Sequence[torch.Tensor],
        scales: Sequence[torch.Tensor],
        bias: Any,
        activations: Activations | None,
        transposed: bool = False,
    ) -> None:
        nn.Module.__init__(self)
        self.transposed = transposed
        rows, columns = latents[0].shape
        self.out_features, self.in_features = (columns, rows) if transposed else (rows, columns)
        self.activations = activations
        self._take_over(quantizer, latents, scales)
        self.register_parameter("bias", bias)
        self.register_parameter(CLIP, None)
        if activations is not None and activations.clip is not None:
            clip = activations.initial_range().to(latents[0].device, latents[0].dtype)
            self.register_parameter(CLIP, nn.Parameter(clip, requires_grad=self.latents[0].requires_grad))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        x, kind = input, input.device.type
        # As autocast does with a plain linear layer: float64 stays. The meta device has no autocast.
        if kind != "meta" and torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(kind))
        if torch.compiler.is_dynamo_compiling() and torch.is_grad_enabled():
            return self._forward_compiled(x)
        return LinearFunction.apply(
            x,
            self.bias,
            self.activation_clip,
            self.strength,
            self.quantizer,
            self.activations,
            self.transposed,
            len(self.latents),
            *self.latents,
            *self.scales,
        )

    def _forward_compiled(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the same under torch.compile.

        The compiler would see that forward and backward compute the same weight, and keep a full-precision copy of it
        for each layer. What is checkpointed has to be computed again.
        """
        weight = checkpoint(lambda: self.weight.to(x.dtype), use_reentrant=False)
        if self.activations is not None:
            how = self.activation_clip, self.strength, self.activations
            x = checkpoint(lambda x: RoundActivations.apply(x, *how), x, use_reentrant=False)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, weight.t() if self.transposed else weight, bias)

    def reset_parameters(self) -> None:
        """Draw new random weights, as ``nn.Linear`` does."""
        like = {"device": self.latents[0].device, "dtype": self.latents[0].dtype}
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, **like)
        self._restart_from(plain.weight.t() if self.transposed else plain.weight)
        if self.bias is not None:
            with torch.no_grad():
                self.bias.copy_(plain.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self._describe()}"
