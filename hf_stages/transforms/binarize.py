"""One-bit weights: minus one and plus one."""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_stages.layers.binary_embedding import BinaryEmbedding
from hf_stages.layers.binary_linear import BinaryLinear
from hf_stages.transforms._quantize import Quantize


@dataclass(frozen=True)
class Binarize(Quantize):
    """Linear layers and word embeddings become binary at once, without ternary ones in between (XTC's single stage).

    Ternary layers may become binary too; ``SplitTernary`` keeps the function there, this does not.

    >>> Binarize("encoder.layer.0", activations=None).modules
    ('encoder.layer.0',)
    """

    method: str = field(default="mean", kw_only=True)
    """How scales are computed: ``mean`` of the absolute weights, or ``learned``."""

    levels = "binary"
    layers = (BinaryLinear, BinaryEmbedding)
