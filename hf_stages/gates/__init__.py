"""Gates: from the stage's history, nothing, an alert, the end of the stage, a lower rate or a way back. One file each."""

from typing import Any

from hf_stages.core.exports import Exports

_EXPORTS = Exports(
    __name__,
    ("gates",),
    more={"Decision": "hf_stages.gates.base", "Gate": "hf_stages.gates.base", "History": "hf_stages.gates.base"},
)


def __getattr__(name: str) -> Any:
    return _EXPORTS.load(name)


def __dir__() -> list[str]:
    return _EXPORTS.names()
