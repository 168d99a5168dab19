"""Checksums that tell models and vocabularies apart."""

from __future__ import annotations

import json
from typing import Any

import torch
import transformers
import xxhash

from hf_stages.layers.blocks import base_of

_IGNORED_FIELDS = (
    "transformers_version",
    "_name_or_path",
    "name_or_path",
    "architectures",
    "use_cache",
    "dtype",
    "torch_dtype",
)
"""Config fields that do not change what a model computes."""


def checksum_of(model: Any) -> str:
    """Compute a checksum of a model's config and of every weight, in its dtype and on its device."""
    kind, config = class_and_config(model)
    config = {key: value for key, value in config.items() if key not in _IGNORED_FIELDS}
    digest = xxhash.xxh3_128(json.dumps([kind, config], sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if not torch.is_tensor(tensor):
            continue
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def class_and_config(model: Any) -> tuple[str, dict[str, Any]]:
    """Return the class and the config of a model, from which a skeleton of it can be built."""
    base = base_of(model)
    config = json.loads(json.dumps(base.config.to_dict(), default=str)) if hasattr(base, "config") else {}
    config.pop("quantization_config", None)
    return f"{type(base).__module__}:{type(base).__qualname__}", config


def skeleton_of(kind: str, config: dict[str, Any]) -> Any:
    """Build a model on the meta device: names and shapes, no weights."""
    module, _, name = kind.partition(":")
    cls = getattr(transformers, name, None) if module.startswith("transformers.") else None
    if cls is None:
        raise ValueError(f"the cached teacher was a {kind}, which is no class of transformers; use it live")
    with torch.device("meta"):
        return cls._from_config(cls.config_class.from_dict(dict(config)))


def vocabulary_of(tokenizer: Any) -> str | None:
    """Compute a checksum of a tokenizer's vocabulary; None for anything else, such as an image processor."""
    if not hasattr(tokenizer, "get_vocab"):
        return None
    return xxhash.xxh3_128_hexdigest(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
