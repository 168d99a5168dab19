"""Widths and head counts as a model's config states them."""

from __future__ import annotations

from typing import Any

from hf_stages.layers.blocks import base_of


def config_of(model: Any, stack: str | None) -> Any:
    """The config of the tower whose blocks count: its text config where it has several."""
    config = base_of(model).config
    part = getattr(config, stack, None) if stack is not None else None
    if part is not None and hasattr(part, "hidden_size"):
        return part
    return config.get_text_config() if not hasattr(config, "hidden_size") else config


def width_of(model: Any, stack: str | None) -> int:
    return int(config_of(model, stack).hidden_size)


def heads_of(model: Any, stack: str | None, *, keys: bool = False) -> int:
    """Attention heads; with ``keys`` those of keys and values, fewer under grouped-query attention."""
    config = config_of(model, stack)
    fewer = getattr(config, "num_key_value_heads", None) if keys else None
    return int(fewer or config.num_attention_heads)
