"""A linear layer of one-bit weights."""

from __future__ import annotations

from typing import Any

from hf_stages.layers._linear import QuantizedLinear
from hf_stages.layers.activations import Activations


class BinaryLinear(QuantizedLinear):
    """Each weight is plus or minus its row's scale: ``mean |w|``, or learned (``method="learned"``).

    >>> layer = BinaryLinear(4, 2, activations=8)
    >>> layer.weight.abs().unique(dim=-1).shape, layer.weight_latent.shape
    (torch.Size([2, 1]), torch.Size([2, 4]))
    """

    levels = "binary"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        method: str = "mean",
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
