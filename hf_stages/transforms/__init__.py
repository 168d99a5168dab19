"""Transforms: what the model becomes before a stage's first step. One file each."""

from typing import Any

from hf_stages.core.exports import Exports

_EXPORTS = Exports(__name__, ("transforms",), more={"Transform": "hf_stages.transforms.base"})


def __getattr__(name: str) -> Any:
    return _EXPORTS.load(name)


def __dir__() -> list[str]:
    return _EXPORTS.names()
