"""Packed models: one or two bits a weight, on disk and in memory."""

from hf_stages.packing._convert import check_packable as check_packable
from hf_stages.packing._pack import pack as pack
from hf_stages.packing._seal import seal as seal
from hf_stages.packing._sizes import PackedSize as PackedSize
from hf_stages.packing._spec import PackedSpec as PackedSpec
from hf_stages.packing.packed_embedding import PackedEmbedding as PackedEmbedding
from hf_stages.packing.packed_linear import PackedLinear as PackedLinear

__all__ = ["PackedEmbedding", "PackedLinear", "PackedSize", "PackedSpec", "check_packable", "pack", "seal"]
