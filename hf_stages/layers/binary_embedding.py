"""An embedding of one-bit rows."""

from __future__ import annotations

from hf_stages.layers._embedding import QuantizedEmbedding


class BinaryEmbedding(QuantizedEmbedding):
    """Each row is plus or minus its scale: ``mean |w|``, or learned.

    >>> BinaryEmbedding(10, 4).weight.abs().unique(dim=-1).shape
    torch.Size([10, 1])
    """

    levels = "binary"
