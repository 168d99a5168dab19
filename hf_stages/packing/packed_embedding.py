"""An embedding whose rows stay packed in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hf_stages.layers.packed_levels import unpack_levels
from hf_stages.packing._spec import PackedSpec
from hf_stages.packing.packed_weight import PackedWeight, apply_embed_scale, apply_scales


class PackedEmbedding(PackedWeight, nn.Embedding):
    """An embedding with packed weights. Only rows that are looked up are unpacked.

    Args:
        num_embeddings: The number of rows.
        embedding_dim: The number of columns.
        spec: How the weight is packed.
        padding_idx: As in ``nn.Embedding``.
        embed_scale: What the output is multiplied with, as in BART and Gemma.
        rounded_scale: Whether ``embed_scale`` is rounded to the output's dtype, as in Gemma.
        weight: The packed bytes; None leaves them empty.
        scale: The scales of the rows.
        device: Where an empty weight is made.
        dtype: The dtype of the output.

    >>> PackedEmbedding(10, 16, PackedSpec("binary")).weight.shape
    torch.Size([10, 2])
    """

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
        # Some models' embeddings scale their output: BART's by a number, Gemma's by one that is rounded to its dtype.
        self.rounded_scale = rounded_scale
        self.embed_scale = embed_scale
        self._take_over(spec, num_embeddings, embedding_dim, weight, scale, device)
        self.dtype = dtype or torch.get_default_dtype()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.spec.levels == "split":
            one, two = (self._rows(half, scale, input) for half, scale in zip(self.weight, self.scale, strict=True))
            rows = one + two
        else:
            rows = self._rows(self.weight, self.scale, input)
        return apply_embed_scale(rows.to(self.dtype), self.embed_scale, self.rounded_scale)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # No tensor here has the dtype of the output, which must follow .to() all the same.
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return super()._apply(fn, recurse)

    def _rows(self, table: torch.Tensor, scales: torch.Tensor, input: torch.Tensor) -> torch.Tensor:
        found = table[input]
        if self.spec.bits < 8:
            found = unpack_levels(found, self.spec.bits, self.columns)
        return apply_scales(found, scales[input])

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, padding_idx={self.padding_idx}, {self._describe()}"
