"""Which modules of a model can be quantized, and where they are."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_stages.layers.experts import QuantizedExperts, layout_of, stacks_in
from hf_stages.layers.quantized import Quantized

_ROUTER = re.compile(r"(^|[._])(router|gate|gating)([._]|$)")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def kind_of(module: Any) -> str | None:
    """Return ``linear``, ``embedding`` or ``experts``; None for modules that cannot be quantized.

    A subclass with a forward pass of its own cannot be.
    """
    if isinstance(module, Quantized):
        return "embedding" if isinstance(module, nn.Embedding) else "linear"
    if isinstance(module, QuantizedExperts):
        return "experts"
    if type(module) in (nn.Linear, Conv1D):
        return "linear"
    # Embeddings that scale their output (BART, Gemma) are supported; other subclasses are not.
    if isinstance(module, nn.Embedding) and (type(module) is nn.Embedding or hasattr(module, "embed_scale")):
        return "embedding"
    return "experts" if layout_of(module)[0] else None


def weights_of(module: Any) -> list[nn.Parameter]:
    """Return the parameters of a module that quantizing turns, or has turned, into latent weights."""
    if isinstance(module, Quantized):
        return list(module.latents)
    if isinstance(module, QuantizedExperts):
        return list(stacks_in(module))
    return [getattr(module, name) for name in layout_of(module)[0] or ("weight",)]


def routers_of(model: Any) -> set[int]:
    """Return the ids of linear layers that choose experts: they have few outputs, and only the largest ones count."""
    config = getattr(model, "config", None)
    configs = [config, *(value for value in vars(config).values() if hasattr(value, "model_type"))] if config else []
    counts = {getattr(c, key) for c in configs for key in _EXPERTS if isinstance(getattr(c, key, None), int)}
    return {
        id(module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features in counts | {1}
        and _ROUTER.search(".".join(path.split(".")[-2:]))
    }


def word_embeddings_of(model: Any) -> set[int]:
    """Return the ids of the word embeddings: the input embedding, and embeddings that share its weight."""
    try:
        table = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return set()
    if not isinstance(table, nn.Embedding):
        return set()  # in vision models this is the layer that embeds patches
    weights = {id(w) for w in _own_parameters(table)}
    tables = (module for module in model.modules() if isinstance(module, nn.Embedding))
    return {id(module) for module in tables if any(id(w) in weights for w in _own_parameters(module))}


def holders_of(model: nn.Module, ids: Container[int]) -> Iterator[tuple[nn.Module, str]]:
    """Yield (parent, attribute) for every place that holds one of these modules; a shared module has several."""
    found = [
        (parent, key)
        for parent in model.modules()
        for key, child in parent._modules.items()
        if child is not None and id(child) in ids
    ]
    return iter(found)


def _own_parameters(table: Any) -> list[nn.Parameter]:
    return list(table.parameters(recurse=False))
