"""Where the keys and values of each cycle of a recurrent core lie in a model's cache."""

from __future__ import annotations

from typing import Any

import torch


class CycleCache:
    """A view of a cache for one cycle: the core's layers write to slots of that cycle.

    The cache has a slot for each pair of cycle and layer (as for transformers' HRM-Text, through a number of layers in
    the config that counts every cycle's). The first cycle uses the slots of the core's layers themselves, and later
    ones the slots behind those of the whole model, so that no other layer's slot depends on the depth.

    Args:
        cache: The model's cache.
        offset: What is added to a layer's own slot.
    """

    def __init__(self, cache: Any, offset: int) -> None:
        self._cache, self._offset = cache, offset

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self._cache.update(keys, values, layer_idx + self._offset, *args, **kwargs)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._cache.get_seq_length(layer_idx + self._offset)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)
