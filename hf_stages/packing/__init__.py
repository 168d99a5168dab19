"""Packing: models with one or two bits a weight on disk and in memory, kernels for them, and other file formats.

Not to be confused with several examples in one row, which is the collator ``Packed``.
"""

from typing import TYPE_CHECKING, Any

from hf_stages.core.exports import Exports

if TYPE_CHECKING:  # written by `python -m tests.support.typed_exports`
    from hf_stages.packing._seal import seal as seal
    from hf_stages.packing._sizes import PackedSize as PackedSize
    from hf_stages.packing._spec import PackedSpec as PackedSpec
    from hf_stages.packing.convert import check_packable as check_packable
    from hf_stages.packing.pack_folder import pack as pack
    from hf_stages.packing.packed_embedding import PackedEmbedding as PackedEmbedding
    from hf_stages.packing.packed_linear import PackedLinear as PackedLinear

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
