"""Data: where examples come from, how a run goes over them, and how they become batches."""

from typing import Any

from hf_stages.core.exports import Exports

_EXPORTS = Exports(
    __name__,
    ("data",),
    more={"BaseCollator": "hf_stages.data.collators.base", "Curriculum": "hf_stages.data.curricula.base"},
)


def __getattr__(name: str) -> Any:
    return _EXPORTS.load(name)


def __dir__() -> list[str]:
    return _EXPORTS.names()
