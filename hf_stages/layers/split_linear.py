"""A linear layer made of two binary weights, which are added up."""

from __future__ import annotations

from typing_extensions import Self

from hf_stages.layers._linear import QuantizedLinear
from hf_stages.layers.quantized import split_in_halves


class SplitLinear(QuantizedLinear):
    """The sum of two binary weights multiplies the input. A ternary layer becomes this when it is split.

    Right after the split the sum takes the ternary layer's three values; training may then use four. Arguments are
    those of ``BinaryLinear``.

    >>> from hf_stages.layers import TernaryLinear
    >>> ternary = TernaryLinear(8, 4)
    >>> split = SplitLinear.from_ternary(ternary)
    >>> bool((split.weight - ternary.weight).abs().max() < 1e-6)
    True
    """

    levels = "binary"
    split = True

    @classmethod
    def from_ternary(cls, layer: QuantizedLinear) -> Self:
        """Split a ternary layer into two binary halves with the same sum (see ``split_ternary``)."""
        quantizer, latents, scales = split_in_halves(layer)
        return cls.from_layer(layer, quantizer, layer.activations, latents, scales)
