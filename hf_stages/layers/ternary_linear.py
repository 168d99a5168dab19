"""A linear layer of two-bit weights: minus one, zero, plus one."""

from __future__ import annotations

from hf_stages.layers._linear import QuantizedLinear


class TernaryLinear(QuantizedLinear):
    """Each weight is zero, or plus or minus its row's scale, by TWN (default), ``absmean`` or ``learned`` scales.

    >>> layer = TernaryLinear(64, 2, per=32)
    >>> len(layer.weight.unique())  # two rows of two groups: four scales up and down, and zero
    9
    """

    levels = "ternary"
