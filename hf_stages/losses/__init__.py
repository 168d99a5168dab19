"""Losses, one in each file. A loss returns its sum over a micro-batch and says how many items it ran over.

``objective`` holds what makes them one loss for each update. Nothing here knows of a trainer's data or teachers.
"""

from typing import Any

from hf_stages.core.exports import Exports

_EXPORTS = Exports(__name__, ("losses",), more={"Loss": "hf_stages.losses.base"})


def __getattr__(name: str) -> Any:
    return _EXPORTS.load(name)


def __dir__() -> list[str]:
    return _EXPORTS.names()
