"""A table whose rows stay packed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hf_stages.layers.packed_levels import unpack_levels
from hf_stages.packing._spec import PackedSpec
from hf_stages.packing.packed_weight import PackedWeight, scaled, times


class PackedEmbedding(PackedWeight, nn.Embedding):
    """Only rows that are looked up are unpacked."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        spec: PackedSpec,
        *,
        padding_idx: int | None = None,
        embed_scale: float | None = None,
        rounded_scale: bool = False,
        weight: torch.Tensor | None = None,
        scale: torch.Tensor | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx
        self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse = None, 2.0, False, False
        # Some models' tables multiply what they give out: BART's by a number, Gemma's by one rounded to the table's dtype.
        self.rounded_scale = rounded_scale
        self.embed_scale = embed_scale
        self._own(spec, num_embeddings, embedding_dim, weight, scale, device)
        self.dtype = dtype or torch.get_default_dtype()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.spec.levels == "split":
            one, two = (self._rows(half, of, input) for half, of in zip(self.weight, self.scale, strict=True))
            rows = one + two
        else:
            rows = self._rows(self.weight, self.scale, input)
        return times(rows.to(self.dtype), self.embed_scale, self.rounded_scale)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # Nothing here is of the dtype in which rows come out; it follows .to() all the same.
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return super()._apply(fn, recurse)

    def _rows(self, table: torch.Tensor, scales: torch.Tensor, input: torch.Tensor) -> torch.Tensor:
        found = table[input]
        if self.spec.bits < 8:
            found = unpack_levels(found, self.spec.bits, self.columns)
        return scaled(found, scales[input])

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, padding_idx={self.padding_idx}, {self._words()}"
