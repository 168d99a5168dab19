"""Layers: where a model's blocks are, and modules that stand in for a model's own."""

from hf_stages.layers._quantized import is_range as is_range
from hf_stages.layers._stored import StoredBits as StoredBits
from hf_stages.layers._stored import StoredSize as StoredSize
from hf_stages.layers.activations import Activations as Activations
from hf_stages.layers.binary_embedding import BinaryEmbedding as BinaryEmbedding
from hf_stages.layers.binary_linear import BinaryLinear as BinaryLinear
from hf_stages.layers.bits import stored_size as stored_size
from hf_stages.layers.blocks import blocks_of as blocks_of
from hf_stages.layers.blocks import stack_of as stack_of
from hf_stages.layers.blocks import stacks_of as stacks_of
from hf_stages.layers.normed_linear import NormedLinear as NormedLinear
from hf_stages.layers.quantizers import Quantizer as Quantizer
from hf_stages.layers.split_embedding import SplitEmbedding as SplitEmbedding
from hf_stages.layers.split_linear import SplitLinear as SplitLinear
from hf_stages.layers.ternary_embedding import TernaryEmbedding as TernaryEmbedding
from hf_stages.layers.ternary_linear import TernaryLinear as TernaryLinear

__all__ = [
    "Activations",
    "BinaryEmbedding",
    "BinaryLinear",
    "NormedLinear",
    "Quantizer",
    "SplitEmbedding",
    "SplitLinear",
    "StoredBits",
    "StoredSize",
    "TernaryEmbedding",
    "TernaryLinear",
    "blocks_of",
    "is_range",
    "stack_of",
    "stacks_of",
    "stored_size",
]
