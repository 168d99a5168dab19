"""Two-bit weights: minus one, zero, plus one."""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_stages.layers.ternary_embedding import TernaryEmbedding
from hf_stages.layers.ternary_linear import TernaryLinear
from hf_stages.transforms._quantize import Quantize


@dataclass(frozen=True)
class Ternarize(Quantize):
    """Linear layers and word embeddings become ternary; their weights train on in full precision (latent weights).

    The forward pass computes with minus one, zero and one times a scale, as the model will after packing.

    >>> Ternarize(per=64, embeddings=False).per
    64
    """

    method: str = field(default="twn", kw_only=True)
    """How scales and zeros are computed: ``twn``, ``absmean`` or ``learned``."""

    levels = "ternary"
    layers = (TernaryLinear, TernaryEmbedding)
