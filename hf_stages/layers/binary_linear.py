"""A linear layer with weights of one bit."""

from __future__ import annotations

from hf_stages.layers._linear import QuantizedLinear


class BinaryLinear(QuantizedLinear):
    """A linear layer whose weights are plus or minus their row's scale, which is ``mean |w|`` or learned.

    Arguments are those of ``nn.Linear``, ``method`` and ``per`` of ``Quantizer``, and ``activations``: 8 or 4 bits, or
    ``Activations(...)``; None leaves the inputs as they are.

    >>> layer = BinaryLinear(4, 2, activations=8)
    >>> layer.weight.abs().unique(dim=-1).shape, layer.weight_latent.shape
    (torch.Size([2, 1]), torch.Size([2, 4]))
    """

    levels = "binary"
