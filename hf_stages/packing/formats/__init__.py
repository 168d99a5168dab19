"""Formats: exporters that write a stage's model for other programs."""

from typing import Any

from hf_stages.core.exports import Exports

_EXPORTS = Exports(__name__, ("exporters",))


def __getattr__(name: str) -> Any:
    return _EXPORTS.load(name)


def __dir__() -> list[str]:
    return _EXPORTS.names()
