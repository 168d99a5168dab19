"""Schedules: how a stage takes over the learning rate and, independently, the optimizer. One file each."""

from typing import Any

from hf_stages.core.exports import Exports

_EXPORTS = Exports(
    __name__,
    ("schedules",),
    more=dict.fromkeys(("Defaults", "Piece", "Schedule", "Span"), "hf_stages.schedules.base"),
)


def __getattr__(name: str) -> Any:
    return _EXPORTS.load(name)


def __dir__() -> list[str]:
    return _EXPORTS.names()
