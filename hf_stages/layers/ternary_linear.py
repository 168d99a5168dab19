"""A linear layer with weights of two bits."""

from __future__ import annotations

from hf_stages.layers._linear import QuantizedLinear


class TernaryLinear(QuantizedLinear):
    """A linear layer whose weights are zero, or plus or minus their row's scale.

    Arguments are those of ``nn.Linear``, ``method`` (``twn``, ``absmean`` or ``learned``) and ``per`` of ``Quantizer``,
    and ``activations``: 8 or 4 bits, or ``Activations(...)``; None leaves the inputs as they are.

    >>> layer = TernaryLinear(64, 2, per=32)
    >>> len(layer.weight.unique())  # two rows of two groups: four scales with both signs, and zero
    9
    """

    levels = "ternary"
