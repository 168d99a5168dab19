"""Gates: from a stage's history to a decision (an alert, its end, a lower rate, a way back) or none. One file each."""

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
