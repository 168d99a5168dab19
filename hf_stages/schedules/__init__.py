"""Schedules: a stage's learning rates, and whether the optimizer starts anew. One file each."""

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
