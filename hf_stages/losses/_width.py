"""Read widths and head counts from a model's config."""

from __future__ import annotations

from typing import Any

from hf_stages.layers.blocks import base_of, stack_of


def config_of(model: Any, stack: str | None) -> Any:
    """Return the config of the module that holds the stack: a tower's own where a model has several."""
    base, path = base_of(model), stack_of(model, stack)[0].split(".")
    for end in range(len(path) - 1, -1, -1):
        config = getattr(base.get_submodule(".".join(path[:end])), "config", None)
        if hasattr(config, "hidden_size"):
            return config
    return base.config.get_text_config()


def width_of(model: Any, stack: str | None) -> int:
    return int(config_of(model, stack).hidden_size)


def heads_of(model: Any, stack: str | None, *, keys: bool = False) -> int:
    """Count attention heads; with ``keys`` those of keys and values, fewer under grouped-query attention."""
    config = config_of(model, stack)
    # BART and its kin: num_attention_heads is the encoder's.
    own = getattr(config, "decoder_attention_heads", None) if stack == "decoder" else None
    fewer = getattr(config, "num_key_value_heads", None) if keys else None
    heads = fewer or own or getattr(config, "num_attention_heads", None)
    if heads is None:
        raise ValueError(
            f"{type(base_of(model)).__name__} has no attention heads (config.num_attention_heads); losses on "
            "attention cannot work here, use HiddenMSE"
        )
    return int(heads)


def size_of(model: Any, stack: str | None) -> int:
    """Return the size of one attention head."""
    config = config_of(model, stack)
    given = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    return int(given or config.hidden_size // heads_of(model, stack))
