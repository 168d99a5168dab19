"""Quantized linear layers: what binary, ternary and split ones have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D
from typing_extensions import Self

from hf_stages.layers._through import QuantizedLinear as _Function
from hf_stages.layers._through import Rounded
from hf_stages.layers.activations import Activations
from hf_stages.layers.quantized import CLIP, Quantized, as_activations, initial_latents, latents_of
from hf_stages.layers.quantizers import METHOD, Quantizer


class QuantizedLinear(Quantized, nn.Linear):
    """``y = Q(x) Q(w)ᵀ + b``. It is an ``nn.Linear`` for whoever asks (PEFT, patterns by class)."""

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
        """In the place of ``layer``: its weight is the latent one now, its bias is taken over."""
        own = cls.__new__(cls)
        transposed = isinstance(layer, Conv1D) or bool(getattr(layer, "transposed", False))
        latents = latents_of(layer) if latents is None else latents
        own._build(quantizer, latents, scales, layer.bias, activations, transposed)
        if activations is not None and activations == getattr(layer, "activations", None):
            own.activation_clip = layer.activation_clip  # as trained
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
        self._own(quantizer, latents, scales)
        self.register_parameter("bias", bias)
        self.register_parameter(CLIP, None)
        if activations is not None and activations.clip is not None:
            clip = activations.initial_range().to(latents[0].device, latents[0].dtype)
            self.register_parameter(CLIP, nn.Parameter(clip, requires_grad=self.latents[0].requires_grad))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        x, kind = input, input.device.type
        # As autocast does with a plain linear layer: float64 stays. The meta device knows none.
        if kind != "meta" and torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype(kind))
        if torch.compiler.is_dynamo_compiling() and torch.is_grad_enabled():
            return self._traced(x)
        return _Function.apply(
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

    def _traced(self, x: torch.Tensor) -> torch.Tensor:
        """The same for torch.compile. It would see that forward and backward make one and the same weight and keep that,
        a full-precision copy of each layer; what is checkpointed it has to make again.
        """
        weight = checkpoint(lambda: self.weight.to(x.dtype), use_reentrant=False)
        if self.activations is not None:
            about = self.activation_clip, self.strength, self.activations
            x = checkpoint(lambda x: Rounded.apply(x, *about), x, use_reentrant=False)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, weight.t() if self.transposed else weight, bias)

    def reset_parameters(self) -> None:
        """nn.Linear's own way, for whoever asks for it: the latents begin anew."""
        like = {"device": self.latents[0].device, "dtype": self.latents[0].dtype}
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, **like)
        self._begin(plain.weight.t() if self.transposed else plain.weight)
        if self.bias is not None:
            with torch.no_grad():
                self.bias.copy_(plain.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self._words()}"
