"""Packing: models with one or two bits a weight on disk and in memory, kernels for them, and other file formats."""

from typing import Any

from hf_stages.core.exports import Exports

_EXPORTS = Exports(
    __name__,
    more={
        "PackedEmbedding": "hf_stages.packing.packed_embedding",
        "PackedLinear": "hf_stages.packing.packed_linear",
        "PackedSize": "hf_stages.packing._sizes",
        "PackedSpec": "hf_stages.packing._spec",
        "check_packable": "hf_stages.packing.convert",
        "pack": "hf_stages.packing.pack_folder",
        "seal": "hf_stages.packing._seal",
    },
)


def __getattr__(name: str) -> Any:
    return _EXPORTS.load(name)


def __dir__() -> list[str]:
    return _EXPORTS.names()
