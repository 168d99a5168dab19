"""Which level each weight of a quantized layer takes at full strength."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from hf_stages.layers.experts import QuantizedExperts
from hf_stages.layers.quantized import Quantized


def quantized_layers(model: nn.Module) -> list[Any]:
    """List a model's quantized layers and quantized experts. Of layers that share their weights the first counts."""
    found: dict[int, Any] = {}
    for module in model.modules():
        if isinstance(module, Quantized):
            found.setdefault(id(module.latents[0]), module)
        elif isinstance(module, QuantizedExperts):
            found.setdefault(id(module.latents_of(module.stacks[0])[0]), module)
    return list(found.values())


def levels_of(layer: Any) -> torch.Tensor:
    """Return the levels -1, 0 and 1 (int8) of all latent weights of a layer, in one row."""
    with torch.no_grad():
        return torch.cat([layer.quantizer.codes(rows, scale)[0].flatten() for rows, scale in _matrices(layer)])


def _matrices(layer: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Yield latent weights with outputs as rows, and their learned scales."""
    if isinstance(layer, Quantized):
        held = [(layer.latents, layer.scales)]
    else:
        held = [(layer.latents_of(name), layer.scales_of(name)) for name in layer.stacks]
    for latents, scales in held:
        for i, latent in enumerate(latents):
            yield latent.transpose(-1, -2) if layer.transposed else latent, scales[i] if scales else None
