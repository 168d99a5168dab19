"""An embedding made of two binary ones, whose rows are added up."""

from __future__ import annotations

from typing_extensions import Self

from hf_stages.layers._embedding import QuantizedEmbedding
from hf_stages.layers.quantized import split_in_halves


class SplitEmbedding(QuantizedEmbedding):
    """The sum of two binary embeddings. A ternary embedding becomes this when it is split, with the same memory.

    Arguments are those of ``BinaryEmbedding``.

    >>> from hf_stages.layers import TernaryEmbedding
    >>> ternary = TernaryEmbedding(4, 8)
    >>> split = SplitEmbedding.from_ternary(ternary)
    >>> bool((split.weight - ternary.weight).abs().max() < 1e-6)
    True
    """

    levels = "binary"
    split = True

    @classmethod
    def from_ternary(cls, layer: QuantizedEmbedding) -> Self:
        """Split a ternary embedding into two binary ones with the same sum."""
        quantizer, latents, scales = split_in_halves(layer)
        return cls.from_layer(layer, quantizer, latents, scales)
