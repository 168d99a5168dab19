"""A linear layer of two one-bit weights on the same input: what a ternary layer becomes when it is split."""

from __future__ import annotations

from typing_extensions import Self

from hf_stages.layers._linear import QuantizedLinear
from hf_stages.layers.quantized import split_in_halves


class SplitLinear(QuantizedLinear):
    """``w1`` and ``w2`` are both binary, and their sum multiplies the input once: ternary right after the split, then free
    to take four values.
    """

    levels = "binary"
    split = True

    @classmethod
    def from_ternary(cls, layer: QuantizedLinear) -> Self:
        """The same function as ``layer``, with halves that keep its scales (see ``split_ternary``)."""
        quantizer, latents, scales = split_in_halves(layer)
        return cls.from_layer(layer, quantizer, layer.activations, latents, scales)
