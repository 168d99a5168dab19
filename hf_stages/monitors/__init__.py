"""Monitors: what watches a stage and adds numbers to its log. They change nothing. One file each."""

from typing import Any

from hf_stages.core.exports import Exports

_EXPORTS = Exports(__name__, ("monitors",), more={"Monitor": "hf_stages.monitors.base"})


def __getattr__(name: str) -> Any:
    return _EXPORTS.load(name)


def __dir__() -> list[str]:
    return _EXPORTS.names()
