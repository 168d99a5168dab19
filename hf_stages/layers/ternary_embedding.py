"""An embedding with weights of two bits."""

from __future__ import annotations

from hf_stages.layers._embedding import QuantizedEmbedding


class TernaryEmbedding(QuantizedEmbedding):
    """An embedding whose weights are zero, or plus or minus their row's scale.

    Arguments are those of ``nn.Embedding``, and ``method`` (``twn``, ``absmean`` or ``learned``) and ``per`` of
    ``Quantizer``.

    >>> len(TernaryEmbedding(1, 64).weight.unique())
    3
    """

    levels = "ternary"
