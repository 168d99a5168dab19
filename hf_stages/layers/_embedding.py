"""The common base of binary, ternary and split embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from typing_extensions import Self

from hf_stages.layers._straight_through import FakeQuantize
from hf_stages.layers.quantized import Quantized, initial_latents, latents_of
from hf_stages.layers.quantizers import METHOD, Quantizer


class QuantizedEmbedding(Quantized, nn.Embedding):
    """An embedding of quantized rows.

    With one scale or more for each row, only the rows that are looked up are quantized.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        method: str | None = None,
        per: str | int = "row",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        plain = nn.Embedding(num_embeddings, embedding_dim, padding_idx, device=device, dtype=dtype)
        quantizer = Quantizer(self.levels, method or METHOD[self.levels], per)
        self._build(plain, quantizer, *initial_latents(plain.weight, quantizer, self.split))

    @classmethod
    def from_layer(
        cls,
        layer: nn.Module,
        quantizer: Quantizer,
        latents: Sequence[torch.Tensor] | None = None,
        scales: Sequence[torch.Tensor] = (),
    ) -> Self:
        """Make the quantized layer that replaces ``layer``, whose weight becomes the latent weight."""
        own = cls.__new__(cls)
        own._build(layer, quantizer, latents_of(layer) if latents is None else latents, scales)
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
        # Some models' embeddings scale their output: BART's by a number, Gemma's by a buffer of the weight's dtype.
        scale = getattr(layer, "embed_scale", None)
        if isinstance(scale, torch.Tensor):
            self.register_buffer("embed_scale", scale, persistent=False)
        else:
            self.embed_scale = scale
        self._take_over(quantizer, latents, scales)

    def __setattr__(self, name: str, value: Any) -> None:
        # transformers resizes by writing to `weight.data`, which has no effect here, and then sets this.
        if name == "num_embeddings" and "quantizer" in self.__dict__ and value != (rows := self.latents[0].shape[0]):
            raise ValueError(
                f"{type(self).__name__}: expected {rows} rows, as its latent weight has, got {value}; resize the "
                "vocabulary before quantizing (ResizeVocab before Ternarize or Binarize), or leave embeddings out "
                "(embeddings=False)"
            )
        super().__setattr__(name, value)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        options = (input, self.padding_idx, None, 2.0, self.scale_grad_by_freq, self.sparse)
        if self.quantizer.per == "tensor":
            rows = _looked_up(self.weight, *options)
        else:
            parts = [_looked_up(latent, *options) for latent in self.latents]
            scales = [_looked_up(scale.view(self.num_embeddings, -1), *options) for scale in self.scales]
            rows = FakeQuantize.apply(self.quantizer, self.strength, False, len(parts), *parts, *scales)
        factor = self.embed_scale
        if factor is None:
            return rows
        return rows * (factor.to(rows.dtype) if isinstance(factor, torch.Tensor) else factor)

    def reset_parameters(self) -> None:
        like = {"device": self.latents[0].device, "dtype": self.latents[0].dtype}
        self._restart_from(nn.Embedding(self.num_embeddings, self.embedding_dim, self.padding_idx, **like).weight)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, padding_idx={self.padding_idx}, {self._describe()}"


def _looked_up(table: torch.Tensor, input: torch.Tensor, *how: Any) -> torch.Tensor:
    return F.embedding(input, table, *how)
