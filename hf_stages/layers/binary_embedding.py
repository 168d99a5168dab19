"""An embedding of one-bit rows."""

from __future__ import annotations

from typing import Any

from hf_stages.layers._embedding import QuantizedEmbedding


class BinaryEmbedding(QuantizedEmbedding):
    """Each row is plus or minus its scale: ``mean |w|``, or learned.

    >>> BinaryEmbedding(10, 4).weight.abs().unique(dim=-1).shape
    torch.Size([10, 1])
    """

    levels = "binary"

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        method: str = "mean",
        per: str | int = "row",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, method=method, per=per, device=device, dtype=dtype)
