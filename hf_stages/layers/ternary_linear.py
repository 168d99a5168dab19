"""A linear layer of two-bit weights: minus one, zero, plus one."""

from __future__ import annotations

from typing import Any

from hf_stages.layers._linear import QuantizedLinear
from hf_stages.layers.activations import Activations


class TernaryLinear(QuantizedLinear):
    """Each weight is zero, or plus or minus its row's scale, by TWN (default), ``absmean`` or ``learned`` scales.

    >>> layer = TernaryLinear(64, 2, per=32)
    >>> len(layer.weight.unique())  # two rows of two groups: four scales up and down, and zero
    9
    """

    levels = "ternary"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        method: str = "twn",
        per: str | int = "row",
        activations: int | Activations | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            bias,
            method=method,
            per=per,
            activations=activations,
            device=device,
            dtype=dtype,
        )
