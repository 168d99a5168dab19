"""Layers: quantized and normed modules that replace a model's own, and where the blocks of a model are."""

from typing import TYPE_CHECKING, Any

from hf_stages.core.exports import Exports

if TYPE_CHECKING:  # written by `python -m tests.support.typed_exports`
    from hf_stages.layers.activations import Activations as Activations
    from hf_stages.layers.binary_embedding import BinaryEmbedding as BinaryEmbedding
    from hf_stages.layers.binary_linear import BinaryLinear as BinaryLinear
    from hf_stages.layers.bits import stored_size as stored_size
    from hf_stages.layers.blocks import blocks_of as blocks_of
    from hf_stages.layers.blocks import stack_of as stack_of
    from hf_stages.layers.blocks import stacks_of as stacks_of
    from hf_stages.layers.normed_linear import NormedLinear as NormedLinear
    from hf_stages.layers.quantized import is_range_parameter as is_range_parameter
    from hf_stages.layers.quantizers import Quantizer as Quantizer
    from hf_stages.layers.recurrent import RecurrentCore as RecurrentCore
    from hf_stages.layers.recurrent import at_depth as at_depth
    from hf_stages.layers.recurrent import carrying_states as carrying_states
    from hf_stages.layers.recurrent import find_recurrence as find_recurrence
    from hf_stages.layers.recurrent import set_depth as set_depth
    from hf_stages.layers.split_embedding import SplitEmbedding as SplitEmbedding
    from hf_stages.layers.split_linear import SplitLinear as SplitLinear
    from hf_stages.layers.storage import StoredBits as StoredBits
    from hf_stages.layers.storage import StoredSize as StoredSize
    from hf_stages.layers.ternary_embedding import TernaryEmbedding as TernaryEmbedding
    from hf_stages.layers.ternary_linear import TernaryLinear as TernaryLinear

_EXPORTS = Exports(
    __name__,
    more={
        "Activations": "hf_stages.layers.activations",
        "BinaryEmbedding": "hf_stages.layers.binary_embedding",
        "BinaryLinear": "hf_stages.layers.binary_linear",
        "NormedLinear": "hf_stages.layers.normed_linear",
        "Quantizer": "hf_stages.layers.quantizers",
        "RecurrentCore": "hf_stages.layers.recurrent",
        "SplitEmbedding": "hf_stages.layers.split_embedding",
        "SplitLinear": "hf_stages.layers.split_linear",
        "StoredBits": "hf_stages.layers.storage",
        "StoredSize": "hf_stages.layers.storage",
        "TernaryEmbedding": "hf_stages.layers.ternary_embedding",
        "TernaryLinear": "hf_stages.layers.ternary_linear",
        "at_depth": "hf_stages.layers.recurrent",
        "blocks_of": "hf_stages.layers.blocks",
        "carrying_states": "hf_stages.layers.recurrent",
        "find_recurrence": "hf_stages.layers.recurrent",
        "is_range_parameter": "hf_stages.layers.quantized",
        "set_depth": "hf_stages.layers.recurrent",
        "stack_of": "hf_stages.layers.blocks",
        "stacks_of": "hf_stages.layers.blocks",
        "stored_size": "hf_stages.layers.bits",
    },
)


def __getattr__(name: str) -> Any:
    return _EXPORTS.load(name)


def __dir__() -> list[str]:
    return _EXPORTS.names()
