"""Layers: quantized and normed modules that replace a model's own, and where the blocks of a model are."""

from typing import Any

from hf_stages.core.exports import Exports

_EXPORTS = Exports(
    __name__,
    more={
        "Activations": "hf_stages.layers.activations",
        "BinaryEmbedding": "hf_stages.layers.binary_embedding",
        "BinaryLinear": "hf_stages.layers.binary_linear",
        "NormedLinear": "hf_stages.layers.normed_linear",
        "Quantizer": "hf_stages.layers.quantizers",
        "SplitEmbedding": "hf_stages.layers.split_embedding",
        "SplitLinear": "hf_stages.layers.split_linear",
        "StoredBits": "hf_stages.layers.storage",
        "StoredSize": "hf_stages.layers.storage",
        "TernaryEmbedding": "hf_stages.layers.ternary_embedding",
        "TernaryLinear": "hf_stages.layers.ternary_linear",
        "blocks_of": "hf_stages.layers.blocks",
        "is_range_parameter": "hf_stages.layers.quantized",
        "stack_of": "hf_stages.layers.blocks",
        "stacks_of": "hf_stages.layers.blocks",
        "stored_size": "hf_stages.layers.bits",
    },
)


def __getattr__(name: str) -> Any:
    return _EXPORTS.load(name)


def __dir__() -> list[str]:
    return _EXPORTS.names()
