"""Kernels: fast linear layers on packed weights of 1 and 2 bits."""

from typing import Any

from hf_stages.core.exports import Exports

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
