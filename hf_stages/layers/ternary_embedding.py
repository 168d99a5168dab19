"""An embedding of two-bit rows: minus one, zero, plus one."""

from __future__ import annotations

from hf_stages.layers._embedding import QuantizedEmbedding


class TernaryEmbedding(QuantizedEmbedding):
    """Each entry is zero, or plus or minus its row's scale, by TWN (default), ``absmean`` or ``learned`` scales."""

    levels = "ternary"
