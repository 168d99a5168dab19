"""Quantized linear layers: what binary, ternary and split ones have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D
from typing_extensions import Self

from hf_stages.layers._quantized import Quantized, as_activations
from hf_stages.layers._through import QuantizedLinear as _Function
from hf_stages.layers.activations import Activations
from hf_stages.layers.quantizers import Quantizer


class QuantizedLinear(Quantized, nn.Linear):
    """``y = Q(x) Q(w)ᵀ + b``. It is an ``nn.Linear`` for whoever asks (PEFT, patterns by class)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        method: str,
        per: str | int = "row",
        activations: int | Activations | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        plain = nn.Linear(in_features, out_features, bias, device=device, dtype=dtype)
        latents = [plain.weight] if not self.split else [plain.weight, nn.Parameter(plain.weight.detach().clone())]
        quantizer = Quantizer(self.levels, method, per)
        self._build(quantizer, latents, (), plain.bias, as_activations(activations))

    @classmethod
    def of(
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
        latents = [layer.weight] if latents is None else latents
        own._build(quantizer, latents, scales, layer.bias, activations, transposed)
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
        learned = activations is not None and activations.clip is not None
        # Moved first: .to() of a parameter gives none.
        clip = nn.Parameter(activations.initial().to(latents[0].device)) if learned else None  # type: ignore[union-attr]
        self.register_parameter("activation_clip", clip)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        x, kind = input, input.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
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

    def reset_parameters(self) -> None:
        """nn.Linear's own way, for whoever asks for it: the latents begin anew."""
        for latent in self.latents:
            nn.init.kaiming_uniform_(latent, a=5**0.5)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {self._words()}"
