"""Which modules of a model have a weight that quantized layers can take over, and where they stand."""

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
    """``linear``, ``embedding`` or ``experts``; None for all else, subclasses with a forward pass of their own included."""
    if isinstance(module, Quantized):
        return "embedding" if isinstance(module, nn.Embedding) else "linear"
    if isinstance(module, QuantizedExperts):
        return "experts"
    if type(module) in (nn.Linear, Conv1D):
        return "linear"
    # A table that multiplies what it gives out (BART, Gemma) is known; other subclasses are not.
    if isinstance(module, nn.Embedding) and (type(module) is nn.Embedding or hasattr(module, "embed_scale")):
        return "embedding"
    return "experts" if layout_of(module)[0] else None


def weights_of(module: Any) -> list[nn.Parameter]:
    """The parameters that quantizing a module takes over, or took over."""
    if isinstance(module, Quantized):
        return list(module.latents)
    if isinstance(module, QuantizedExperts):
        return list(stacks_in(module))
    return [getattr(module, name) for name in layout_of(module)[0] or ("weight",)]


def routers_of(model: Any) -> set[int]:
    """Ids of linear layers that choose experts: few outputs, of which the largest counts."""
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
