"""Quantized embeddings: what binary, ternary and split ones have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from typing_extensions import Self

from hf_stages.layers._quantized import Quantized
from hf_stages.layers._through import FakeQuantize
from hf_stages.layers.quantizers import Quantizer


class QuantizedEmbedding(Quantized, nn.Embedding):
    """A table of quantized rows. Only the rows that are looked up are quantized, where each has scales of its own."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        method: str,
        per: str | int = "row",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        plain = nn.Embedding(num_embeddings, embedding_dim, padding_idx, device=device, dtype=dtype)
        latents = [plain.weight] if not self.split else [plain.weight, nn.Parameter(plain.weight.detach().clone())]
        self._build(plain, Quantizer(self.levels, method, per), latents, ())

    @classmethod
    def of(
        cls,
        layer: nn.Module,
        quantizer: Quantizer,
        latents: Sequence[torch.Tensor] | None = None,
        scales: Sequence[torch.Tensor] = (),
    ) -> Self:
        """In the place of ``layer``: its weight is the latent one now."""
        own = cls.__new__(cls)
        own._build(layer, quantizer, [layer.weight] if latents is None else latents, scales)
        return own.train(layer.training)

    def _build(
        self,
        layer: Any,
        quantizer: Quantizer,
        latents: Sequence[torch.Tensor],
        scales: Sequence[torch.Tensor],
    ) -> None:
        if layer.max_norm is not None:
            raise ValueError("max_norm: a quantized embedding does not renormalize its rows; leave max_norm out")
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = layer.num_embeddings, layer.embedding_dim
        self.padding_idx, self.max_norm, self.norm_type = layer.padding_idx, None, layer.norm_type
        self.scale_grad_by_freq, self.sparse = layer.scale_grad_by_freq, layer.sparse
        # Some models' tables multiply what they give out (BART's, Gemma's).
        self.embed_scale = getattr(layer, "embed_scale", None)
        self._own(quantizer, latents, scales)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        look = (input, self.padding_idx, None, 2.0, self.scale_grad_by_freq, self.sparse)
        if self.quantizer.per == "tensor":
            rows = _looked_up(self.weight, *look)
        else:
            parts = [_looked_up(latent, *look) for latent in self.latents]
            scales = [_looked_up(scale.view(self.num_embeddings, -1), input) for scale in self.scales]
            rows = FakeQuantize.apply(self.quantizer, self.strength, False, len(parts), *parts, *scales)
        return rows if self.embed_scale is None else rows * self.embed_scale

    def reset_parameters(self) -> None:
        for latent in self.latents:
            nn.init.normal_(latent)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, padding_idx={self.padding_idx}, {self._words()}"


def _looked_up(table: torch.Tensor, input: torch.Tensor, *how: Any) -> torch.Tensor:
    return F.embedding(input, table, *how)
