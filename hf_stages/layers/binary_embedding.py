"""An embedding with weights of one bit."""

from __future__ import annotations

from hf_stages.layers._embedding import QuantizedEmbedding


class BinaryEmbedding(QuantizedEmbedding):
    """An embedding whose weights are plus or minus their row's scale, which is ``mean |w|`` or learned.

    Arguments are those of ``nn.Embedding``, and ``method`` and ``per`` of ``Quantizer``.

    >>> BinaryEmbedding(10, 4).weight.abs().unique(dim=-1).shape
    torch.Size([10, 1])
    """

    levels = "binary"
