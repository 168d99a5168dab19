"""Kernels: fast linear layers on packed weights of 1 and 2 bits."""

from typing import TYPE_CHECKING, Any

from hf_stages.core.exports import Exports

if TYPE_CHECKING:  # written by `python -m tests.support.typed_exports`
    from hf_stages.packing.kernels._linear import linear as linear
    from hf_stages.packing.kernels.library import which as which

_EXPORTS = Exports(
    __name__,
    more={
        "linear": "hf_stages.packing.kernels._linear",
        "which": "hf_stages.packing.kernels.library",
    },
)


def __getattr__(name: str) -> Any:
    return _EXPORTS.load(name)


def __dir__() -> list[str]:
    return _EXPORTS.names()
