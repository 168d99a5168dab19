"""Whether a loss's value depends on the model's weights: a graph alone does not say so."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

_OPAQUE = "CheckpointFunctionBackward"
"""Reentrant checkpointing: what it depends on shows in its own backward alone."""


def reaches_weights(value: torch.Tensor, apart: Collection[int] = ()) -> bool:
    """Whether a gradient of ``value`` comes to a trained weight, those ``apart`` (by id) not counted.

    Embeddings under ``enable_input_require_grads`` are leaves that require a gradient although nothing below them is trained.

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
