"""An embedding of two-bit rows: minus one, zero, plus one."""

from __future__ import annotations

from typing import Any

from hf_stages.layers._embedding import QuantizedEmbedding


class TernaryEmbedding(QuantizedEmbedding):
    """Each entry is zero, or plus or minus its row's scale, by TWN (default), ``absmean`` or ``learned`` scales."""

    levels = "ternary"

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        method: str = "twn",
        per: str | int = "row",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, method=method, per=per, device=device, dtype=dtype)
