"""A linear layer of one-bit weights."""

from __future__ import annotations

from hf_stages.layers._linear import QuantizedLinear


class BinaryLinear(QuantizedLinear):
    """Each weight is plus or minus its row's scale: ``mean |w|``, or learned (``method="learned"``).

    >>> layer = BinaryLinear(4, 2, activations=8)
    >>> layer.weight.abs().unique(dim=-1).shape, layer.weight_latent.shape
    (torch.Size([2, 1]), torch.Size([2, 4]))
    """

    levels = "binary"
