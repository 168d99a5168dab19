"""Which modules of a model have a weight that quantized layers can take over, and where they stand."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_stages.layers._quantized import Quantized


def kind_of(module: Any) -> str | None:
    """``linear`` or ``embedding``; None for all else, subclasses with a forward pass of their own included."""
    if isinstance(module, Quantized):
        return None if module.split else "embedding" if isinstance(module, nn.Embedding) else "linear"
    if type(module) in (nn.Linear, Conv1D):
        return "linear"
    # A table that multiplies what it gives out (BART, Gemma) is known; other subclasses are not.
    if isinstance(module, nn.Embedding) and (type(module) is nn.Embedding or hasattr(module, "embed_scale")):
        return "embedding"
    return None


def word_embeddings_of(model: Any) -> set[int]:
    """Ids of the modules that hold the vocabulary: every table that is, or shares its weight with, the input embedding."""
    try:
        table = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return set()
    if not isinstance(table, nn.Embedding):
        return set()  # vision models call their patches so
    weights = {id(w) for w in _own(table)}
    tables = (module for module in model.modules() if isinstance(module, nn.Embedding))
    return {id(module) for module in tables if any(id(w) in weights for w in _own(module))}


def holders_of(model: nn.Module, ids: Container[int]) -> Iterator[tuple[nn.Module, str]]:
    """Every place (module, attribute) where one of these modules stands; a shared one stands in several."""
    found = [
        (parent, key)
        for parent in model.modules()
        for key, child in parent._modules.items()
        if child is not None and id(child) in ids
    ]
    return iter(found)


def _own(table: Any) -> list[nn.Parameter]:
    return list(table.parameters(recurse=False))
