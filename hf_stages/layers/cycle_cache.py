"""Where the keys and values of each cycle of a recurrent core lie in a model's cache."""

from __future__ import annotations

from typing import Any

import torch

_DEPTH = "_hf_stages_depth"


class CycleCache:
    """A view of a cache for one cycle: the core's layers write to slots of that cycle.

    The cache has a slot for each pair of cycle and layer (as for transformers' HRM-Text, through a number of layers in
    the config that counts every cycle's). The first cycle uses the slots of the core's layers themselves, and later
    ones the slots behind those of the whole model, so that no other layer's slot depends on the depth.

    Args:
        cache: The model's cache; None where it has none.
        offset: What is added to a layer's own slot.
        settled: Which tokens have left the loop, as (batch, tokens): their keys and values stay those of the cycle
            before.
        before: Keys and values of the cycle before, by layer. This cycle's take their place.
    """

    def __init__(
        self,
        cache: Any,
        offset: int,
        settled: torch.Tensor | None = None,
        before: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = None,
    ) -> None:
        self._cache, self._offset, self._settled, self._before = cache, offset, settled, before

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self._before is not None:
            if layer_idx in self._before and self._settled is not None:
                stays = self._settled[:, None, :, None]
                old_keys, old_values = self._before[layer_idx]
                keys, values = torch.where(stays, old_keys, keys), torch.where(stays, old_values, values)
            self._before[layer_idx] = (keys, values)
        if self._cache is None:
            return keys, values
        return self._cache.update(keys, values, layer_idx + self._offset, *args, **kwargs)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0 if self._cache is None else self._cache.get_seq_length(layer_idx + self._offset)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


class PeekingCache:
    """A view of a growing cache that shows layers what lies before them, and stores nothing.

    Args:
        cache: The model's cache; None where it has none.
    """

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        layers = [] if self._cache is None else self._cache.layers
        if layer_idx >= len(layers) or layers[layer_idx].get_seq_length() == 0:
            return keys, values
        kept = layers[layer_idx]
        return torch.cat((kept.keys, keys), dim=-2), torch.cat((kept.values, values), dim=-2)


def check_cache(cache: Any, depth: int, slots: int, config: Any) -> None:
    """Refuse a cache that was made or filled for another depth than the core is to run.

    Args:
        cache: The model's cache.
        depth: How many cycles the core is to run.
        slots: How many layers run then, each cycle's counted.
        config: The model's config.
    """
    size = len(getattr(cache, "layers", ()))
    if size and size < slots and getattr(cache, "layer_class_to_replicate", None) is None:
        if config.num_hidden_layers < slots:  # put there by transformers, which does not put it back after an error
            config.num_hidden_layers = slots
            raise ValueError(
                "assistant_early_exit: a model with a recurrent core cannot draft tokens with some of its layers; "
                "generate without it, or with prompt_lookup_num_tokens or a small assistant_model"
            )
        raise ValueError(
            f"past_key_values: it has slots for {size} layers, and {depth} cycles need {slots}; make the cache from "
            "model.config within the same at_depth(...) that runs it, or after set_depth(model, ...)"
        )
    filled = getattr(cache, _DEPTH, depth) if cache.get_seq_length() else depth
    if filled != depth:
        raise ValueError(
            f"past_key_values: it was filled at {filled} cycles, and the model now runs {depth}: later tokens would "
            "miss earlier ones in some cycles. Go on at the same depth, or start with an empty cache"
        )
    setattr(cache, _DEPTH, depth)
