"""Find out whether the value of a loss depends on the model's weights. That it has a graph does not say so."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

_OPAQUE = "CheckpointFunctionBackward"
"""A node of reentrant checkpointing, which shows only in its own backward pass what it depends on."""


def reaches_weights(value: torch.Tensor, apart: Collection[int] = ()) -> bool:
    """Tell whether a gradient of ``value`` reaches a trained weight other than those in ``apart`` (given by id).

    Embeddings under ``enable_input_require_grads`` require a gradient although nothing below them is trained.

    >>> layer = nn.Linear(2, 1)
    >>> reaches_weights(layer(torch.ones(2))), reaches_weights(torch.ones(2, requires_grad=True).sum())
    (True, False)
    """
    if not value.requires_grad or value.grad_fn is None:
        return isinstance(value, nn.Parameter) and value.requires_grad
    waiting, seen = [value.grad_fn], {value.grad_fn}
    while waiting:
        node = waiting.pop()
        leaf = getattr(node, "variable", None)
        if (isinstance(leaf, nn.Parameter) and id(leaf) not in apart) or node.name() == _OPAQUE:
            return True
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return False
