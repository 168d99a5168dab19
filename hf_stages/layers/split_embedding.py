"""An embedding of two one-bit tables, whose rows are added up: what a ternary one becomes when it is split."""

from __future__ import annotations

from typing_extensions import Self

from hf_stages.layers._embedding import QuantizedEmbedding
from hf_stages.layers.quantized import split_in_halves


class SplitEmbedding(QuantizedEmbedding):
    """Both tables are binary. It takes the memory of a ternary one, and twice that of a binary one."""

    levels = "binary"
    split = True

    @classmethod
    def from_ternary(cls, layer: QuantizedEmbedding) -> Self:
        """The same rows as ``layer``'s, as the sum of two binary ones."""
        quantizer, latents, scales = split_in_halves(layer)
        return cls.from_layer(layer, quantizer, latents, scales)
